//! Metrics of a member in Prometheus' text format: `GET /metrics`.
//!
//! | file | thought |
//! |---|---|
//! | `mod` | what happened, counted as it happens |
//! | [`text`] | how a line of the format looks |
//! | [`patroni`] | the names of the contract, from the snapshot (contract: REST API §13) |
//! | [`member`] | our own names that are read off the snapshot |
//! | [`volume`] | free bytes and fsync latency of the data volume, archive backlog: looked at by a thread of its own |
//! | [`calls`] | a store whose calls are timed |
//!
//! A scrape asks neither postgres nor the DCS.

pub mod calls;
pub mod member;
pub mod patroni;
pub mod text;
pub mod volume;

use std::{
    sync::{Arc, RwLock},
    time::Duration,
};

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::{
    agent::{handle::Snapshot, handover::Handover},
    clock::Boottime,
    dcs::Hold,
    model::{MemberName, Role},
};

/// Seconds; from what a turn without I/O takes to what a store that is away costs.
const SHORT: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Seconds; from a planned hand-over to a lease that ran out.
const LONG: [f64; 12] = [0.1, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 300.0];

/// What made a member the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Asked for, with a leader that handed over.
    Switchover,
    /// Asked for, with or without a leader.
    ManualFailover,
    /// The lock was free.
    Failover,
}

impl Cause {
    /// The label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Switchover => "switchover",
            Self::ManualFailover => "manual_failover",
            Self::Failover => "failover",
        }
    }
}

/// Taking the lock over, to be told when the promotion is through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takeover {
    /// Why.
    pub cause: Cause,
    /// When this member saw that nobody held the lock.
    pub free_since: Option<Boottime>,
    /// When this member last saw WAL come from the former leader.
    pub last_wal: Option<Boottime>,
}

/// Everything that is counted. One per process, shared.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Duration of a turn of the loop.
    turns: Histogram,
    calls: HistogramVec,
    roles: IntCounterVec,
    promotions: IntCounterVec,
    handovers: HistogramVec,
    gaps: HistogramVec,
    fsync: Histogram,
    requests: IntCounterVec,
    certificates: IntGaugeVec,
    phases: GaugeVec,
    volume: RwLock<Option<volume::Look>>,
}

impl Metrics {
    /// # Errors
    /// Only if two of the names below were the same.
    pub fn new(scope: &str, member: &MemberName) -> Result<Arc<Self>, prometheus::Error> {
        let labels = [("scope", scope), ("name", member.as_str())];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let registry = Registry::new_custom(None, Some(labels.into_iter().collect()))?;
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(opts)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let histograms = |name: &str, help: &str, buckets: &[f64], by: &[&str]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histograms = HistogramVec::new(opts, by)?;
            registry.register(Box::new(histograms.clone()))?;
            Ok::<_, prometheus::Error>(histograms)
        };
        let counters = |name: &str, help: &str, by: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), by)?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, prometheus::Error>(counters)
        };
        let certificates = IntGaugeVec::new(
            Opts::new(
                "howdah_certificate_expiry_timestamp_seconds",
                "When a certificate of this member ends, in seconds since 1970, by what it is for.",
            ),
            &["of"],
        )?;
        registry.register(Box::new(certificates.clone()))?;
        let phases = GaugeVec::new(
            Opts::new(
                "howdah_handover_phase_seconds",
                "The phases of the last hand-over this member took part in, by the side it was on.",
            ),
            &["side", "phase"],
        )?;
        registry.register(Box::new(phases.clone()))?;
        Ok(Arc::new(Self {
            certificates,
            phases,
            turns: histogram(
                "howdah_loop_duration_seconds",
                "Duration of one turn of the agent's loop.",
                &SHORT,
            )?,
            calls: histograms(
                "howdah_dcs_call_duration_seconds",
                "Duration of one call to the DCS, by call and outcome.",
                &SHORT,
                &["call", "outcome"],
            )?,
            roles: counters(
                "howdah_role_changes_total",
                "Changes of this member's role.",
                &["from", "to"],
            )?,
            promotions: counters(
                "howdah_promotions_total",
                "Promotions of this member to primary, by cause.",
                &["cause"],
            )?,
            handovers: histograms(
                "howdah_handover_duration_seconds",
                "From the moment this member saw the lock free until it accepted writes.",
                &LONG,
                &["cause"],
            )?,
            gaps: histograms(
                "howdah_write_gap_seconds",
                "From this member's last look at WAL that came from the former leader until it accepted writes; at most loop_wait too long.",
                &LONG,
                &["cause"],
            )?,
            fsync: histogram(
                "howdah_data_volume_fsync_duration_seconds",
                "Duration of an fsync of a small file on the data volume.",
                &SHORT,
            )?,
            requests: counters(
                "howdah_http_requests_total",
                "Answers of the REST API, by kind of request and status.",
                &["kind", "code"],
            )?,
            registry,
            volume: RwLock::new(None),
        }))
    }

    /// A turn of the loop took this long.
    pub fn turned(&self, took: Duration) {
        self.turns.observe(took.as_secs_f64());
    }

    /// A call to the store ended.
    pub fn called(&self, call: &str, outcome: &str, took: Duration) {
        let calls = self.calls.with_label_values(&[call, outcome]);
        calls.observe(took.as_secs_f64());
    }

    /// The role changed.
    pub fn role_changed(&self, from: Role, to: Role) {
        self.roles.with_label_values(&[from.as_str(), to.as_str()]).inc();
    }

    /// This member has become the primary just now.
    pub fn promoted(&self, takeover: &Takeover, now: Boottime) {
        let cause = [takeover.cause.as_str()];
        self.promotions.with_label_values(&cause).inc();
        if let Some(since) = takeover.free_since {
            let took = now.since(since).as_secs_f64();
            self.handovers.with_label_values(&cause).observe(took);
        }
        if let Some(since) = takeover.last_wal {
            let took = now.since(since).as_secs_f64();
            self.gaps.with_label_values(&cause).observe(took);
        }
    }

    /// A request was answered.
    pub fn answered(&self, kind: &str, code: u16) {
        let mut buffer = [0; 3];
        self.requests
            .with_label_values(&[kind, digits(code, &mut buffer)])
            .inc();
    }

    pub(crate) fn looked_at_volume(&self, look: volume::Look) {
        if let Some(took) = look.fsync {
            self.fsync.observe(took.as_secs_f64());
        }
        *self
            .volume
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(look);
    }

    /// A hand-over is over.
    pub fn handed_over(&self, handover: &Handover) {
        for (phase, took) in &handover.phases {
            let gauge = self.phases.with_label_values(&[handover.side.as_str(), *phase]);
            gauge.set(took.as_secs_f64());
        }
    }

    /// When the certificate ends that the REST API shows, in seconds since 1970.
    pub fn restapi_certificate_ends(&self, at: u64) {
        let at = i64::try_from(at).unwrap_or(i64::MAX);
        self.certificates.with_label_values(&["restapi"]).set(at);
    }

    /// The whole answer to a scrape.
    #[must_use]
    pub fn render(&self, snapshot: &Snapshot, hold: Option<&Hold>, now: Boottime) -> String {
        let mut page = text::Page::new(&snapshot.scope, &snapshot.member);
        patroni::render(&mut page, snapshot, now);
        let volume = self
            .volume
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone();
        member::render(&mut page, snapshot, hold, volume.as_ref(), now);
        let mut page = page.into_bytes();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut page) {
            tracing::debug!(%error, "could not render all metrics");
        }
        String::from_utf8_lossy(&page).into_owned()
    }
}

/// A status as text, without allocating.
fn digits(code: u16, buffer: &mut [u8; 3]) -> &str {
    let digit = |n: u16| b'0' + u8::try_from(n % 10).unwrap_or(0);
    *buffer = [digit(code / 100), digit(code / 10), digit(code)];
    std::str::from_utf8(buffer).unwrap_or("0")
}

/// The lines of a page with their labels in order: that of a registry is by chance.
#[cfg(test)]
pub(crate) fn in_order(page: &str) -> Vec<String> {
    let one = |line: &str| {
        let (head, rest) = line.split_once('{')?;
        let (labels, value) = rest.rsplit_once('}')?;
        let mut labels: Vec<&str> = labels.split(',').collect();
        labels.sort_unstable();
        Some(format!("{head}{{{}}}{value}", labels.join(",")))
    };
    page.lines()
        .map(|line| one(line).unwrap_or_else(|| line.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::handle::fixtures::{NOW, leader};

    #[test]
    fn what_happened_is_in_the_answer() {
        let metrics = Metrics::new("demo", &"n1".into()).expect("names differ");
        metrics.turned(Duration::from_millis(3));
        metrics.called("renew", "ok", Duration::from_millis(7));
        metrics.role_changed(Role::Replica, Role::Primary);
        metrics.answered("health", 503);
        let takeover = Takeover {
            cause: Cause::Switchover,
            free_since: Some(NOW),
            last_wal: Some(NOW.minus(Duration::from_millis(150))),
        };
        metrics.promoted(&takeover, NOW + Duration::from_millis(100));
        let page = in_order(&metrics.render(&leader(), None, NOW));
        for line in [
            r#"howdah_loop_duration_seconds_bucket{le="0.005",name="n1",scope="demo"} 1"#,
            r#"howdah_dcs_call_duration_seconds_count{call="renew",name="n1",outcome="ok",scope="demo"} 1"#,
            r#"howdah_role_changes_total{from="replica",name="n1",scope="demo",to="primary"} 1"#,
            r#"howdah_promotions_total{cause="switchover",name="n1",scope="demo"} 1"#,
            r#"howdah_handover_duration_seconds_bucket{cause="switchover",le="0.1",name="n1",scope="demo"} 1"#,
            r#"howdah_write_gap_seconds_sum{cause="switchover",name="n1",scope="demo"} 0.25"#,
            r#"howdah_http_requests_total{code="503",kind="health",name="n1",scope="demo"} 1"#,
        ] {
            assert!(page.iter().any(|l| l == line), "{line} is not in {page:#?}");
        }
    }

    /// Names in `expr` strings, whatever stands around them.
    fn used(text: &str) -> std::collections::BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words
            .filter(|word| word.starts_with("patroni_") || word.starts_with("howdah_"))
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn dashboard_and_alerts_name_only_what_is_served() {
        let metrics = Metrics::new("demo", &"n1".into()).expect("names differ");
        metrics.turned(Duration::ZERO);
        metrics.called("renew", "ok", Duration::ZERO);
        metrics.role_changed(Role::Replica, Role::Primary);
        metrics.answered("health", 200);
        metrics.restapi_certificate_ends(1_800_000_000);
        metrics.looked_at_volume(volume::Look {
            free_bytes: 1,
            size_bytes: 2,
            fsync: Some(Duration::ZERO),
            archive_ready: 0,
            archive_lag: Duration::ZERO,
        });
        let takeover = Takeover {
            cause: Cause::Failover,
            free_since: Some(NOW),
            last_wal: Some(NOW),
        };
        metrics.promoted(&takeover, NOW);
        let hold = Hold {
            sent_at: NOW,
            ttl: Duration::from_secs(30),
            lease: 1,
        };
        let page = metrics.render(&leader(), Some(&hold), NOW);
        let series = page.lines().filter_map(|line| line.split_once('{'));
        let mut served: std::collections::BTreeSet<&str> = series.map(|(name, _)| name).collect();
        // One line a slot; the fixture has none.
        served.insert("howdah_slot_retained_wal_bytes");
        let alerts: serde_yaml_ng::Value =
            serde_yaml_ng::from_str(include_str!("../../compose/monitoring/alerts.yml")).expect("YAML");
        let rules = alerts["groups"][0]["rules"].as_sequence().expect("rules");
        let dashboard: serde_json::Value =
            serde_json::from_str(include_str!("../../compose/monitoring/dashboard.json")).expect("JSON");
        let panels = dashboard["panels"].as_array().expect("panels");
        let targets = panels
            .iter()
            .flat_map(|panel| panel["targets"].as_array().expect("targets"));
        let expressions = rules
            .iter()
            .map(|rule| rule["expr"].as_str().expect("expr"))
            .chain(targets.map(|target| target["expr"].as_str().expect("expr")));
        let mut checked = 0;
        for expression in expressions {
            let names = used(expression);
            assert!(!names.is_empty(), "{expression}");
            for name in names {
                assert!(served.contains(name.as_str()), "{name} of {expression}");
                checked += 1;
            }
        }
        assert!(checked > 30, "{checked}");
    }

    #[test]
    fn every_family_is_described_once_and_every_value_is_a_number() {
        let metrics = Metrics::new("demo", &"n1".into()).expect("names differ");
        metrics.turned(Duration::from_millis(3));
        let page = metrics.render(&leader(), None, NOW);
        let mut types = std::collections::BTreeSet::new();
        for line in page.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().expect("a name");
                assert!(types.insert(name.to_owned()), "{name} twice");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("series and value");
                let name = series.split('{').next().expect("a name");
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| name.strip_suffix(end).filter(|family| types.contains(*family)))
                    .unwrap_or(name);
                assert!(types.contains(family), "{line} without TYPE");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                assert!(
                    series.contains(r#"scope="demo""#) && series.contains(r#"name="n1""#),
                    "{line}"
                );
            }
        }
        assert!(types.len() > 30);
    }
}
