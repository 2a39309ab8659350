fn main() { mtq::cli::main() }
