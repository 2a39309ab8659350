//! The `mtq` program; everything is in the library.

fn main() -> std::process::ExitCode {
    mtq::cli::main()
}
