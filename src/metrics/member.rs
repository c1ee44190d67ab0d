//! Our own metrics that are read off the snapshot at the moment of the scrape. Pure, but for this process's own size.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

use super::{
    text::{
        Kind::{Counter, Gauge},
        Page, escaped,
    },
    volume::Look,
};
use crate::{
    agent::handle::{Snapshot, VERSION},
    clock::Boottime,
    dcs::Hold,
    ha::{lease, slots::Owner},
};

/// Writes them all.
pub fn render(
    page: &mut Page,
    snapshot: &Snapshot,
    hold: Option<&Hold>,
    volume: Option<&Look>,
    now: Boottime,
) {
    page.head("howdah_build_info", Gauge, "Version of this program.", None);
    page.line("howdah_build_info", &format!(r#"version="{VERSION}","#), 1);
    lock(page, hold, now);
    page.put(
        "howdah_dcs_age_seconds",
        Gauge,
        "Age of the last good read of the DCS; -1 before the first.",
        snapshot
            .dcs
            .as_ref()
            .map_or(-1.0, |view| now.since(view.seen_at).as_secs_f64()),
    );
    page.flag(
        "howdah_failsafe_ready",
        "1 if this primary would stay one should the DCS vanish now.",
        snapshot.outlook.stays_without_dcs,
    );
    page.flag(
        "howdah_split_brain_suspected",
        "1 while another member calls itself a running primary beside the leader for longer than loop_wait.",
        snapshot.local.split_brain_suspected,
    );
    slots(page, snapshot);
    if let Some(look) = volume {
        self::volume(page, look);
    }
    process(page);
}

fn lock(page: &mut Page, hold: Option<&Hold>, now: Boottime) {
    let Some(hold) = hold else { return };
    page.put(
        "howdah_last_renewal_seconds",
        Gauge,
        "Since the last renewal of the lock that was confirmed was sent; absent without the lock.",
        now.since(hold.sent_at).as_secs_f64(),
    );
    let fence = lease::deadlines(hold).fence_at;
    page.put(
        "howdah_fence_deadline_seconds",
        Gauge,
        "Until this primary is ended by force unless the lock is renewed; absent without the lock.",
        fence.since(now).as_secs_f64(),
    );
}

fn slots(page: &mut Page, snapshot: &Snapshot) {
    let known = snapshot
        .local
        .slots
        .iter()
        .filter_map(|share| Some((share, share.bytes?)));
    let name = "howdah_slot_retained_wal_bytes";
    page.head(
        name,
        Gauge,
        "WAL that a replication slot holds back, by slot and owner.",
        None,
    );
    for (share, bytes) in known {
        let owner = match &share.owner {
            Owner::Member(member) => member.as_str(),
            other => other.as_str(),
        };
        let labels = format!(
            r#"slot="{}",owner="{}","#,
            escaped(&share.slot.name),
            escaped(owner)
        );
        page.line(name, &labels, bytes);
    }
}

fn volume(page: &mut Page, look: &Look) {
    page.put(
        "howdah_data_volume_free_bytes",
        Gauge,
        "Free bytes of the data volume.",
        look.free_bytes,
    );
    page.put(
        "howdah_data_volume_size_bytes",
        Gauge,
        "Size of the data volume.",
        look.size_bytes,
    );
    page.put(
        "howdah_archive_ready_files",
        Gauge,
        "WAL files that wait for the archive.",
        look.archive_ready,
    );
    page.put(
        "howdah_archive_lag_seconds",
        Gauge,
        "How long the oldest of them has been waiting.",
        look.archive_lag.as_secs_f64(),
    );
}

fn process(page: &mut Page) {
    if let Some(bytes) = resident_bytes() {
        page.put(
            "howdah_process_resident_memory_bytes",
            Gauge,
            "Resident memory of the agent.",
            bytes,
        );
    }
    if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
        let (user, system) = (usage.user_time(), usage.system_time());
        let micros = (user.tv_sec() + system.tv_sec()) * 1_000_000 + user.tv_usec() + system.tv_usec();
        page.put(
            "howdah_process_cpu_seconds_total",
            Counter,
            "Processor time of the agent.",
            Duration::from_micros(u64::try_from(micros).unwrap_or(0)).as_secs_f64(),
        );
    }
}

/// `VmRSS:      9876 kB`.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let rest = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::handle::fixtures::{NOW, leader};

    #[test]
    fn the_lease_and_the_volume_are_told() {
        let hold = Hold {
            sent_at: NOW.minus(Duration::from_secs(4)),
            ttl: Duration::from_secs(30),
            lease: 7,
        };
        let look = Look {
            free_bytes: 10,
            size_bytes: 20,
            fsync: None,
            archive_ready: 2,
            archive_lag: Duration::from_secs(90),
        };
        let mut page = Page::new("demo", &"n1".into());
        render(&mut page, &leader(), Some(&hold), Some(&look), NOW);
        let text = String::from_utf8(page.into_bytes()).expect("text");
        let has = |start: &str| text.lines().any(|line| line.starts_with(start));
        for line in [
            r#"howdah_last_renewal_seconds{scope="demo",name="n1"} 4"#,
            r#"howdah_fence_deadline_seconds{scope="demo",name="n1"} 2"#,
            r#"howdah_archive_lag_seconds{scope="demo",name="n1"} 90"#,
            r#"howdah_data_volume_free_bytes{scope="demo",name="n1"} 10"#,
            "howdah_process_resident_memory_bytes",
        ] {
            assert!(has(line), "{line}: {text}");
        }
    }

    #[test]
    fn without_the_lock_there_is_no_deadline() {
        let mut page = Page::new("demo", &"n1".into());
        render(&mut page, &leader(), None, None, NOW);
        let text = String::from_utf8(page.into_bytes()).expect("text");
        assert!(!text.contains("howdah_fence_deadline_seconds"));
    }
}
