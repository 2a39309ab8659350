//! What is kept of one share or download over restarts: what it is called, where its bytes are, and
//! how far it came.
//!
//! Encoded strictly: what was cut off or has anything behind it is no record. Paths are bytes,
//! whatever they say. It knows no disk.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::name::{FileName, GroupName, UserName};
use crate::swarm::stamp::Stamp;
use crate::wire::{self, DecodeError};

/// One share or download of one user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The number shown to people, in the order in which they were begun.
    pub number: u64,
    /// When it was begun.
    pub since: UnixMillis,
    /// What the group was called last.
    pub group: GroupName,
    /// The label.
    pub name: FileName,
    /// Who published it.
    pub publisher: Option<UserName>,
    /// Whether it was shared from here, rather than downloaded.
    pub shared: bool,
    /// Its metafile.
    pub metafile: Option<KeptPath>,
    /// Where its bytes are.
    pub place: Place,
}

/// Where the bytes of a share or download are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In a whole file, which looked like this.
    Whole {
        /// The file.
        path: KeptPath,
        /// What it looked like.
        stamp: Stamp,
    },
    /// In a part file, if anything came already.
    Part {
        /// The directory it is downloaded into.
        directory: KeptPath,
        /// The name it will get there.
        name: FileName,
        /// Bytes that were there when this was written; the part file knows better.
        stored_bytes: u64,
        /// What is to become of it.
        stage: Stage,
    },
}

/// What is to become of a download.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It goes on.
    Going,
    /// It waits until the user says otherwise.
    Paused,
    /// It failed.
    Failed {
        /// Stable code.
        code: String,
        /// What happened.
        message: String,
    },
    /// It goes on, and there is nothing of it yet: not even its part file.
    Fresh,
}

/// A path as the bytes it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u8>", into = "Vec<u8>")]
pub struct KeptPath(pub PathBuf);

impl From<Vec<u8>> for KeptPath {
    fn from(bytes: Vec<u8>) -> Self {
        Self(OsString::from_vec(bytes).into())
    }
}

impl From<KeptPath> for Vec<u8> {
    fn from(path: KeptPath) -> Self {
        path.0.into_os_string().into_vec()
    }
}

impl Record {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// The record in `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] when they are anything but one whole record.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        wire::decode(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::testing::round_trip;

    fn record(place: Place) -> Record {
        Record {
            number: 3,
            since: UnixMillis(1_700_000_000_123),
            group: "lab".parse().expect("a name"),
            name: "a b.iso".parse().expect("a name"),
            publisher: Some("alice".parse().expect("a name")),
            shared: true,
            metafile: Some(KeptPath("/d/a b.iso.mtorrent".into())),
            place,
        }
    }

    fn places() -> Vec<Place> {
        let part = |stage| Place::Part {
            directory: KeptPath(OsString::from_vec(b"/odd \xff".to_vec()).into()),
            name: "a".parse().expect("a name"),
            stored_bytes: 524_288,
            stage,
        };
        let failed = Stage::Failed { code: "no-space".to_owned(), message: "full".to_owned() };
        let stamp = Stamp { size: 7, modified: (1, -2), inode: (64_769, 12) };
        let whole = Place::Whole { path: KeptPath("/d/a b.iso".into()), stamp };
        vec![whole, part(Stage::Going), part(Stage::Paused), part(failed), part(Stage::Fresh)]
    }

    #[test]
    fn every_record_comes_back_and_no_part_of_one_does() {
        for place in places() {
            round_trip(&record(place));
        }
        round_trip(&Record { publisher: None, metafile: None, ..record(places().remove(1)) });
    }

    #[test]
    fn golden() {
        let [whole, _, _, failed, fresh] = places().try_into().expect("five");
        let hex = |place| hex::encode(record(place).encode());
        let beginning = [
            "03",                                         // number
            "fbd095ffbc31",                               // since
            "036c6162",                                   // group
            "076120622e69736f",                           // name
            "0105616c696365",                             // publisher
            "01",                                         // shared
            "01132f642f6120622e69736f2e6d746f7272656e74", // metafile
        ]
        .concat();
        let file = [
            "00",                     // a whole file
            "0a2f642f6120622e69736f", // path
            "07",                     // size
            "0203",                   // modified
            "81fa030c",               // inode
        ];
        assert_eq!(hex(whole), beginning.clone() + &file.concat());
        let part = [
            "01",                 // a part file
            "062f6f646420ff",     // directory
            "0161",               // name
            "808020",             // stored bytes
            "02",                 // failed
            "086e6f2d7370616365", // code
            "0466756c6c",         // message
        ];
        assert_eq!(hex(failed), beginning.clone() + &part.concat());
        let part = [&part[..4], &["03"]].concat();
        assert_eq!(hex(fresh), beginning + &part.concat());
    }
}
