//! Why a download does not move, found out from what is known, and told when it changes.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use crate::piece::PieceIndex;

/// Nobody having what is missing is worth a word after this.
const STUCK: Duration = Duration::from_secs(3);

/// Why a download does not move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Nobody who is online has what is missing.
    NoSource,
    /// It cannot be written, as this says; tried again every few seconds.
    Disk(String),
    /// Everybody who has these pieces sends something else than the manifest says.
    Suspect(Vec<u32>),
}

impl Hold {
    /// A stable name of the cause, for scripts.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoSource => "no-source",
            Self::Disk(_) => "disk",
            Self::Suspect(_) => "manifest-suspected",
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSource => {
                f.write_str("nobody who is online has the rest; it goes on when somebody is")
            }
            Self::Disk(error) => write!(f, "{error}; it goes on when that is over"),
            Self::Suspect(pieces) => write!(
                f,
                "everybody who has the rest sends other bytes than its manifest says (piece {}{}); \
                 it goes on when somebody has the right ones",
                pieces.first().copied().unwrap_or_default(),
                if pieces.len() > 1 { " and others" } else { "" }
            ),
        }
    }
}

/// Watches whether a download moves.
#[derive(Debug, Default)]
pub struct Watch {
    stuck_since: Option<Instant>,
    hold: Option<Hold>,
}

impl Watch {
    /// Looks how things stand: whether nobody could be asked for anything, what is wrong with the disk,
    /// and which pieces everybody fails. Returns why it does not move, if that is otherwise than before.
    pub fn look(
        &mut self,
        now: Instant,
        is_stuck: bool,
        disk: Option<String>,
        suspected: &BTreeSet<PieceIndex>,
    ) -> Option<Option<Hold>> {
        self.stuck_since = if is_stuck { self.stuck_since.or(Some(now)) } else { None };
        let hold = match (disk, self.stuck_since) {
            (Some(error), _) => Some(Hold::Disk(error)),
            (None, Some(since)) if since + STUCK <= now => Some(match suspected.is_empty() {
                true => Hold::NoSource,
                false => Hold::Suspect(suspected.iter().map(|piece| piece.get()).collect()),
            }),
            (None, _) => None,
        };
        // That more pieces are suspected is no news.
        let same = match (&hold, &self.hold) {
            (Some(Hold::Suspect(_)), Some(Hold::Suspect(_))) => true,
            (now, before) => now == before,
        };
        self.hold.clone_from(&hold);
        (!same).then_some(hold)
    }

    /// When to look again, if nothing happens before.
    pub fn wake(&self) -> Option<Instant> {
        self.stuck_since.filter(|_| self.hold.is_none()).map(|since| since + STUCK)
    }

    /// Whether it does not move.
    pub fn is_held(&self) -> bool {
        self.hold.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::swarm::testing::layout;

    #[test]
    fn what_changes_is_told_once_and_a_moment_without_sources_is_not() {
        let (mut watch, none, start) = (Watch::default(), BTreeSet::new(), clock::monotonic());
        assert_eq!(watch.look(start, true, None, &none), None);
        let later = watch.wake().expect("to look again");
        assert_eq!(watch.look(start + STUCK / 2, false, None, &none), None);
        assert_eq!(watch.wake(), None);
        assert_eq!(watch.look(later, true, None, &none), None, "it moved in between");
        let later = later + STUCK;
        assert_eq!(watch.look(later, true, None, &none), Some(Some(Hold::NoSource)));
        assert_eq!(watch.look(later, true, None, &none), None);
        assert!(watch.is_held() && watch.wake().is_none());
        let full = || Some("full".to_owned());
        assert_eq!(watch.look(later, true, full(), &none), Some(Some(Hold::Disk("full".into()))));
        let suspected = BTreeSet::from([layout(9).piece(7).expect("exists")]);
        assert_eq!(watch.look(later, true, None, &suspected), Some(Some(Hold::Suspect(vec![7]))));
        assert_eq!(watch.look(later, false, None, &suspected), Some(None));
    }
}
