//! A tracker inside a program of one's own, until Ctrl-C.
//!
//!     cargo run --example embedded_tracker [DATA_DIR [ADDRESS]]
//!
//! What it keeps is in `DATA_DIR`, and is gone at the end when none is given. It listens on a free port of
//! loopback when no `ADDRESS` is given, and prints the link by which clients find it.

use std::env;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;

use mtq::tracker::{Tracker, TrackerConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let temporary = tempfile::tempdir()?;
    let data_dir = arguments.next().map_or(temporary.path().to_owned(), PathBuf::from);
    let address: SocketAddr = arguments.next().as_deref().unwrap_or("127.0.0.1:0").parse()?;

    // Its key is in the directory as well: started there again, it is the same tracker.
    let config = TrackerConfig::open(&data_dir, address)?;
    let tracker = Tracker::start(config, &data_dir)?;
    println!("{}", tracker.link()?);

    tokio::signal::ctrl_c().await?;
    tracker.shutdown().await;
    println!("stopped");
    Ok(())
}
