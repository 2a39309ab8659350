//! The `mtq` program; everything is in the library.

/// Gives back what datagrams of all sizes leave behind; see the reason in Cargo.toml.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    mtq::cli::main()
}
