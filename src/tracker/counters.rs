//! What a tracker counts: requests by kind and outcome, and limits that were hit.

use std::sync::Mutex;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Labels of a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    request: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

/// The limits whose every hit is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Connections in all.
    Connections,
    /// Connections from one address.
    ConnectionsPerAddress,
    /// Requests on one connection, or changes of one account.
    RequestRate,
    /// Password logins and new accounts from one address.
    LoginRate,
    /// Callers waiting for a password hash.
    PasswordQueue,
    /// A cap on how much somebody may have.
    Quota,
    /// A frame or a hello over its bounds.
    Frame,
    /// A client that does not read its pushes.
    PushQueue,
    /// A client that asks and does not read the answer.
    UnreadAnswer,
}

impl Limit {
    /// Every limit.
    pub const ALL: [Self; 9] = [
        Self::Connections,
        Self::ConnectionsPerAddress,
        Self::RequestRate,
        Self::LoginRate,
        Self::PasswordQueue,
        Self::Quota,
        Self::Frame,
        Self::PushQueue,
        Self::UnreadAnswer,
    ];

    /// Its name in metrics and status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::ConnectionsPerAddress => "connections-per-address",
            Self::RequestRate => "request-rate",
            Self::LoginRate => "login-rate",
            Self::PasswordQueue => "password-queue",
            Self::Quota => "quota",
            Self::Frame => "frame",
            Self::PushQueue => "push-queue",
            Self::UnreadAnswer => "unread-answer",
        }
    }
}

/// What a tracker is and holds at one moment, by metric name, with its help text.
pub type Gauges = Vec<(&'static str, &'static str, i64)>;

/// The counters of one tracker.
#[derive(Debug, Default)]
pub struct Counters {
    requests: Family<RequestLabels, Counter>,
    limits: Family<LimitLabels, Counter>,
    /// Trackers that disagree, ops that contradict each other, clocks that differ.
    sync_alarms: Counter,
    /// Held while the text is made, one at a time.
    encoding: Mutex<()>,
}

impl Counters {
    /// A request was answered.
    pub fn request(&self, request: &'static str, outcome: &'static str) {
        self.requests.get_or_create(&RequestLabels { request, outcome }).inc();
    }

    /// A limit was hit.
    pub fn hit(&self, limit: Limit) {
        self.limits.get_or_create(&LimitLabels { limit: limit.name() }).inc();
    }

    /// Something is wrong between trackers that an operator has to look at.
    pub fn sync_alarm(&self) {
        self.sync_alarms.inc();
    }

    /// How often that was so.
    pub fn sync_alarms(&self) -> u64 {
        self.sync_alarms.get()
    }

    /// How often each limit was hit, those never hit left out.
    pub fn hits(&self) -> Vec<(&'static str, u64)> {
        let count =
            |limit: Limit| self.limits.get_or_create(&LimitLabels { limit: limit.name() }).get();
        let all = Limit::ALL.into_iter().map(|limit| (limit.name(), count(limit)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    /// Everything in the OpenMetrics text format.
    pub fn text(&self, gauges: &Gauges) -> String {
        let _one = self.encoding.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut registry = Registry::with_prefix("mtq_tracker");
        let requests = "Requests answered, by kind and outcome";
        registry.register("requests", requests, self.requests.clone());
        registry.register("limit_hits", "Times a limit was hit", self.limits.clone());
        let alarms = "Disagreements between trackers: digests, ops, clocks";
        registry.register("sync_alarms", alarms, self.sync_alarms.clone());
        for (name, help, value) in gauges {
            let gauge: Gauge = Gauge::default();
            gauge.set(*value);
            registry.register(*name, *help, gauge);
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_counters_and_gauges() {
        let counters = Counters::default();
        counters.request("login", "ok");
        counters.request("login", "ok");
        counters.hit(Limit::Frame);
        assert_eq!(counters.hits(), [("frame", 1)]);
        let text = counters.text(&vec![("users", "Accounts", 7)]);
        for line in [
            "mtq_tracker_requests_total{request=\"login\",outcome=\"ok\"} 2",
            "mtq_tracker_limit_hits_total{limit=\"frame\"} 1",
            "mtq_tracker_users 7",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }
}
