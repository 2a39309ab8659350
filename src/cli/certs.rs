//! `mtq certs`: identities for trackers, and the file of links that clients need.

use std::fs;
use std::io::Write as _;

use super::args::CertsArgs;
use super::exit::Failure;
use super::text;
use crate::tracker_link::{TrackerInfo, TrackerLink};
use crate::transport::identity::Identity;

/// Writes `tracker1.pem`, ... and `tracker_info.txt`; never over existing files.
///
/// # Errors
/// [`Failure`]; nothing is written when any of them exists or an address is malformed.
pub fn run(args: &CertsArgs) -> Result<(), Failure> {
    let disk = |path: &std::path::Path, error: std::io::Error| {
        Failure::new("disk", format!("{}: {error}", text::path(path)))
    };
    let mut made = Vec::new();
    for (index, address) in args.addresses.iter().enumerate() {
        if args.addresses[..index].contains(address) {
            let address = text::printable(address);
            return Err(Failure::usage(format!(
                "{address} is named twice: every tracker has its own"
            )));
        }
        let identity = Identity::generate();
        let link = format!("mtq://{address}#{}", identity.peer_id());
        let link: TrackerLink = link
            .parse()
            .map_err(|error| Failure::usage(format!("{}: {error}", text::printable(address))))?;
        made.push((args.out.join(format!("tracker{}.pem", index + 1)), identity, link));
    }
    let links = made.iter().map(|(_, _, link)| link.clone()).collect();
    let info = TrackerInfo::new(links).map_err(|error| Failure::usage(error.to_string()))?;
    let info_path = args.out.join("tracker_info.txt");
    for path in made.iter().map(|(path, ..)| path).chain([&info_path]) {
        if path.symlink_metadata().is_ok() {
            return Err(Failure::new("exists", format!("{} exists already", text::path(path)))
                .hint("an identity is never overwritten: name another directory"));
        }
    }
    fs::create_dir_all(&args.out).map_err(|error| disk(&args.out, error))?;
    for (path, identity, link) in &made {
        identity.save_new(path).map_err(|error| Failure::new("disk", error.to_string()))?;
        println!("{}  {link}", text::path(path));
    }
    let links = format!(
        "# The trackers of this network: give this file to every client and tracker.\n{info}"
    );
    fs::File::create_new(&info_path)
        .and_then(|mut file| file.write_all(links.as_bytes()))
        .map_err(|error| disk(&info_path, error))?;
    println!("{}", text::path(&info_path));
    eprintln!("the .pem files are private: copy each to its own tracker, and nowhere else");
    Ok(())
}
