//! The agent: one data directory, one identity, one UDP socket, and what they do for a user.

pub mod record;
pub mod shelf;
pub mod error;
pub mod data_dir;
pub mod failover;
pub mod warm;
pub mod line;
pub mod destination;
pub mod transfer;
pub mod looking;
pub mod batch;
pub mod library;
pub mod groups;
pub mod echo;
pub mod metafile;
pub mod report;
pub mod keeper;
mod crier;
mod core;
mod running;
mod watch;
mod hear;
mod parts;
mod restore;
pub mod agent;
mod account;
mod share;
mod finding;
mod get;
pub mod many;
mod pausing;
pub mod status;

#[doc(inline)]
pub use agent::{Agent, AgentConfig};
#[doc(inline)]
pub use batch::{Batch, BatchRow};
#[doc(inline)]
pub use error::{AgentError, DownloadFailure};
#[doc(inline)]
pub use library::EntryState;
#[doc(inline)]
pub use line::LineRow;
#[doc(inline)]
pub use looking::{Looking, LookingKind};
#[doc(inline)]
pub use many::{StartedMany, Which};
#[doc(inline)]
pub use metafile::MetafileTo;
#[doc(inline)]
pub use report::{Cancelled, DownloadRow, LoggedIn, Notice, Overview, Shared, Skipped, Started};
#[doc(inline)]
pub use status::{LastChange, Status, SyncStatus, TrackerStatus};

// What its functions take and give of the floors below.
#[doc(inline)]
pub use crate::swarm::{
    hold::Hold, meter::Progress, rates::RateLimits, upload_counts::UploadCounts,
};
#[doc(inline)]
pub use crate::tracker::message::{
    DeviceRow, FileRow, GroupRow, Matching, MemberRow, Password, RequestRow, Standing, Written,
};
#[doc(inline)]
pub use crate::tracker::refusal::Refusal;
