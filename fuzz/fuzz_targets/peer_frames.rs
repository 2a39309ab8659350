//! Every message that two peers exchange, from any bytes.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use mtq::swarm::message::{Control, PeerHello, PieceHeader, PieceRequest};
use mtq::wire;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    if let Ok(message) = wire::decode::<T>(bytes) {
        let again = wire::encode(&message);
        assert_eq!(wire::decode::<T>(&again).expect("own bytes decode"), message);
    }
}

fuzz_target!(|bytes: &[u8]| {
    check::<PeerHello>(bytes);
    check::<Control>(bytes);
    check::<PieceRequest>(bytes);
    check::<PieceHeader>(bytes);
});
