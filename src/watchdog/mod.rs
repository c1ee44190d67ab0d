//! A watchdog device in addition to init's fence (contract: HA rules §17): it resets the host when even init cannot end
//! what should not be a primary any more, because the whole host hangs.
//!
//! It belongs to the agent, which alone can prove the lease, and hears the same two words as init ([`Fence`]): armed with
//! a deadline at every renewal of the lock, disarmed once postgres certainly writes no more. Its timer is started anew
//! right after each renewal. Without one, once more at the last moment at which the whole timeout still fits in before
//! init's fence, so that an orderly demotion is not cut short by a reset:
//!
//! ```text
//! renewal ──► keep alive       keep alive                              fence_at
//!    └──────── timeout ───────────┴─────────────── timeout ──────────────┘ the host is reset
//! ```
//!
//! An agent that dies leaves the timer running; the one that follows it goes on with lease and device.

mod device;
mod ioctl;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::unistd::{AccessFlags, access};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    agent::lease::Fence,
    clock::Boottime,
    config::{self, WatchdogMode},
};
use device::Device;

/// The least margin before the end of a lease, see `ha::lease::margin`.
const GRACE: Duration = Duration::from_millis(300);

/// The device, or its absence.
#[derive(Debug)]
pub struct Watchdog {
    inner: Mutex<Inner>,
    /// The present deadline, for the task that keeps the timer to it.
    until: watch::Sender<Option<Boottime>>,
}

#[derive(Debug)]
struct Inner {
    settings: config::Watchdog,
    ttl: Duration,
    paused: bool,
    device: Option<Device>,
    /// The ttl its timeout was made for.
    set_for: Duration,
    /// What was asked of it then.
    wanted: Duration,
    /// Why it cannot be used.
    failure: Option<Failure>,
}

/// What went wrong when the device was last used.
#[derive(Debug)]
struct Failure {
    why: String,
    at: Boottime,
}

impl Watchdog {
    /// Does nothing yet: the device is opened when the lock is taken.
    #[must_use]
    pub fn new(settings: config::Watchdog, ttl: Duration) -> Self {
        Self {
            inner: Mutex::new(Inner {
                settings,
                ttl,
                paused: false,
                device: None,
                set_for: Duration::ZERO,
                wanted: Duration::ZERO,
                failure: None,
            }),
            until: watch::Sender::new(None),
        }
    }

    /// The cluster's settings; a new ttl takes effect with the next renewal. In maintenance mode there is no watchdog.
    pub fn configure(&self, ttl: Duration, paused: bool) {
        let mut inner = self.inner();
        inner.ttl = ttl;
        if inner.paused != paused {
            inner.paused = paused;
            inner.close_unless_used();
        }
    }

    /// This member's settings.
    pub fn reload(&self, settings: config::Watchdog) {
        let mut inner = self.inner();
        if inner.settings != settings {
            let moved = inner.settings.device != settings.device || inner.settings.driver != settings.driver;
            inner.settings = settings;
            inner.failure = None;
            inner.set_for = Duration::ZERO;
            if moved {
                inner.close("another device is used");
            }
            inner.close_unless_used();
        }
    }

    /// Why nobody may be a primary here: a watchdog is required and there is none that works.
    #[must_use]
    pub fn failed(&self) -> Option<String> {
        self.failed_at(Boottime::now())
    }

    /// What failed once is believed for ttl, also when the lock was given up because of it: a device that can be opened
    /// but does not work looks usable from outside.
    fn failed_at(&self, now: Boottime) -> Option<String> {
        let inner = self.inner();
        if inner.settings.mode != WatchdogMode::Required || inner.paused || inner.device.is_some() {
            return None;
        }
        let device = &inner.settings.device;
        let recent = |failure: &&Failure| now.since(failure.at) < inner.ttl;
        let failure = inner.failure.as_ref().filter(recent);
        failure.map(|failure| failure.why.clone()).or_else(|| {
            let refused = access(device, AccessFlags::W_OK).err()?;
            Some(format!("{}: {refused}", device.display()))
        })
    }

    /// Keeps the timer to the deadline. Runs for the life of the agent; ends with it, which leaves the timer running.
    pub async fn keep(&self) {
        let mut until = self.until.subscribe();
        loop {
            let deadline = *until.borrow_and_update();
            let last = deadline.and_then(|deadline| self.last_word(deadline));
            let now = Boottime::now();
            let sleep = async {
                match last {
                    Some(last) if last > now => tokio::time::sleep(last.since(now)).await,
                    Some(_) | None => std::future::pending().await,
                }
            };
            // Cancel-safe: both only wait.
            tokio::select! {
                changed = until.changed() => if changed.is_err() { return },
                () = sleep => if let Some(deadline) = deadline { self.inner().keep_alive(deadline) },
            }
        }
    }

    /// The last moment at which the timer may be started anew for this deadline.
    fn last_word(&self, deadline: Boottime) -> Option<Boottime> {
        let timeout = self.inner().device.as_ref()?.timeout;
        Some(deadline.minus(timeout))
    }

    /// A poisoned lock only means that another task panicked between two assignments of plain data.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fence for Watchdog {
    fn arm(&self, until: Boottime, _lease: i64) {
        {
            let mut inner = self.inner();
            if inner.settings.mode == WatchdogMode::Off || inner.paused {
                return;
            }
            inner.activate(until);
            inner.keep_alive(until);
        }
        self.until.send_replace(Some(until));
    }

    fn disarm(&self) {
        self.until.send_replace(None);
        self.inner().close("postgres is no primary here");
    }
}

impl Inner {
    /// Opens the device, or gives it the timeout of a new ttl.
    fn activate(&mut self, until: Boottime) {
        let left = until.since(Boottime::now());
        let Some(wanted) = timeout(self.ttl, self.settings.safety_margin, left) else {
            return;
        };
        // One made for a deadline that was near is shorter than the pauses between renewals: it grows with the next.
        if self.device.is_some() && self.set_for == self.ttl && wanted <= self.wanted {
            return;
        }
        let ready = match &mut self.device {
            Some(device) => device.set_timeout(wanted),
            None => self.open(wanted),
        };
        (self.set_for, self.wanted) = (self.ttl, wanted);
        match ready {
            Ok(()) => self.failure = None,
            Err(error) => {
                self.close("its timeout cannot be set");
                self.fail(format!("{}: {error}", self.settings.device.display()));
            }
        }
    }

    fn open(&mut self, timeout: Duration) -> std::io::Result<()> {
        let device = Device::open(&self.settings.device, self.settings.driver, timeout)?;
        info!(
            from = "off",
            to = "armed",
            device = %self.settings.device.display(),
            driver = device.identity,
            timeout_s = device.timeout.as_secs(),
            because = "the lock is held",
            "watchdog"
        );
        if !device.can_disarm {
            warn!("this watchdog cannot be switched off: stopping postgres will reset the host");
        }
        self.device = Some(device);
        Ok(())
    }

    /// Starts the timer anew, if the whole timeout fits in before another may lead.
    fn keep_alive(&mut self, until: Boottime) {
        let Some(device) = &mut self.device else { return };
        if Boottime::now() + device.timeout > until + GRACE {
            return;
        }
        if let Err(error) = device.keep_alive() {
            // Its timer may go on running; what is open stays so, for the next attempt.
            self.fail(format!("{}: {error}", self.settings.device.display()));
            self.device = None;
        }
    }

    /// Told once, until it changes.
    fn fail(&mut self, why: String) {
        let at = Boottime::now();
        if let Some(failure) = &mut self.failure
            && failure.why == why
        {
            failure.at = at;
            return;
        }
        match self.settings.mode {
            WatchdogMode::Required => {
                warn!(because = why, "the watchdog this member requires cannot be used")
            }
            WatchdogMode::Automatic | WatchdogMode::Off => {
                info!(because = why, "no watchdog device; init alone fences");
            }
        }
        self.failure = Some(Failure { why, at });
    }

    fn close_unless_used(&mut self) {
        if self.paused {
            self.close("maintenance mode");
        } else if self.settings.mode == WatchdogMode::Off {
            self.close("the watchdog is switched off");
        }
    }

    fn close(&mut self, because: &str) {
        let Some(device) = self.device.take() else { return };
        match device.disarm() {
            Ok(()) => info!(from = "armed", to = "off", because, "watchdog"),
            Err(error) => {
                warn!(%error, because, "the watchdog could not be switched off, it will reset the host")
            }
        }
    }
}

/// The timeout in whole seconds: the margin before the end of ttl (never more than half of it), and short enough for the
/// deadline that is `left` to be kept although a renewal is answered late. `None`: no time is left for any.
fn timeout(ttl: Duration, margin: Option<Duration>, left: Duration) -> Option<Duration> {
    let half = ttl / 2;
    let configured = ttl - margin.map_or(half, |margin| margin.min(half));
    let seconds = configured.min(left * 7 / 8).as_secs();
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::config::WatchdogDriver;

    const S: Duration = Duration::from_secs(1);

    struct Given {
        dir: tempfile::TempDir,
        watchdog: Watchdog,
    }

    fn settings(device: PathBuf, mode: WatchdogMode) -> config::Watchdog {
        config::Watchdog {
            mode,
            device,
            safety_margin: Some(S * 5),
            driver: WatchdogDriver::Testing,
        }
    }

    fn given(mode: WatchdogMode) -> Given {
        let dir = tempfile::tempdir().expect("a directory");
        let device = dir.path().join("watchdog");
        std::fs::write(&device, "").expect("writable");
        let watchdog = Watchdog::new(settings(device, mode), S * 30);
        Given { dir, watchdog }
    }

    impl Given {
        fn device(&self) -> PathBuf {
            self.dir.path().join("watchdog")
        }

        fn written(&self) -> String {
            std::fs::read_to_string(self.device()).expect("readable")
        }
    }

    fn in_s(seconds: u64) -> Boottime {
        Boottime::now() + S * u32::try_from(seconds).expect("small")
    }

    #[test]
    fn it_is_kept_alive_with_every_renewal_and_switched_off_at_the_end() {
        let given = given(WatchdogMode::Automatic);
        assert_eq!(given.written(), "", "not before the lock is taken");
        given.watchdog.arm(in_s(28), 1);
        given.watchdog.arm(in_s(28), 1);
        assert_eq!(given.written(), "11");
        given.watchdog.disarm();
        given.watchdog.disarm();
        assert_eq!(given.written(), "11V");
        given.watchdog.arm(in_s(28), 1);
        // A new open file begins at the start of this one; on a device there is no such thing.
        assert!(given.written().starts_with('1'));
    }

    /// An adopted lease may be nearly over; what was right for its rest would end a host whose renewals come in time.
    #[test]
    fn a_timeout_made_for_a_near_deadline_grows_with_the_next() {
        let given = given(WatchdogMode::Required);
        let timeout = || {
            given
                .watchdog
                .inner()
                .device
                .as_ref()
                .map(|device| device.timeout)
        };
        given.watchdog.arm(in_s(6), 1);
        let short = timeout().expect("open");
        given.watchdog.arm(in_s(28), 1);
        let usual = timeout().expect("open");
        assert!(
            short < Duration::from_secs(6) && usual > Duration::from_secs(20),
            "{short:?}, {usual:?}"
        );
    }

    #[test]
    fn a_deadline_the_timeout_does_not_fit_into_is_not_prolonged() {
        let given = given(WatchdogMode::Automatic);
        given.watchdog.arm(in_s(28), 1);
        given.watchdog.arm(in_s(10), 1);
        assert_eq!(given.written(), "1");
    }

    #[tokio::test]
    async fn the_last_word_is_said_when_the_timeout_still_fits() {
        let given = given(WatchdogMode::Automatic);
        given.watchdog.configure(S * 4, false);
        let until = in_s(3);
        given.watchdog.arm(until, 1);
        let last = given.watchdog.last_word(until).expect("open");
        assert_eq!(until.since(last), S * 2);
        let all = async {
            while given.written() != "11" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = given.watchdog.keep() => {}
            done = tokio::time::timeout(S * 3, all) => done.expect("a second word"),
        }
        assert!(Boottime::now() >= last);
    }

    #[test]
    fn required_and_unusable_is_a_failure_and_automatic_is_not() {
        for (mode, failed) in [
            (WatchdogMode::Required, true),
            (WatchdogMode::Automatic, false),
            (WatchdogMode::Off, false),
        ] {
            let given = given(mode);
            assert_eq!(given.watchdog.failed(), None, "{mode:?}");
            std::fs::remove_file(given.device()).expect("removable");
            assert_eq!(given.watchdog.failed().is_some(), failed, "{mode:?}");
            given.watchdog.arm(in_s(28), 1);
            assert_eq!(given.watchdog.failed().is_some(), failed, "{mode:?}");
            // Nobody fences in maintenance mode.
            given.watchdog.configure(S * 30, true);
            assert_eq!(given.watchdog.failed(), None, "{mode:?}");
        }
    }

    #[test]
    fn one_that_opens_but_does_not_work_is_not_tried_again_at_once() {
        let given = given(WatchdogMode::Required);
        // A directory may be written, but not be opened for it.
        std::fs::remove_file(given.device()).expect("removable");
        std::fs::create_dir(given.device()).expect("creatable");
        assert_eq!(given.watchdog.failed(), None, "from outside");
        given.watchdog.arm(in_s(28), 1);
        assert!(given.watchdog.failed().is_some());
        given.watchdog.disarm();
        assert!(given.watchdog.failed().is_some(), "after the lock was given up");
        assert!(given.watchdog.failed_at(in_s(29)).is_some());
        assert_eq!(given.watchdog.failed_at(in_s(31)), None, "after ttl");
        // It is found again, and believed again.
        given.watchdog.arm(in_s(28), 1);
        given.watchdog.disarm();
        assert!(given.watchdog.failed().is_some());
        let other = given.dir.path().join("other");
        std::fs::write(&other, "").expect("writable");
        given.watchdog.reload(settings(other, WatchdogMode::Required));
        assert_eq!(given.watchdog.failed(), None, "after a reload");
        given.watchdog.arm(in_s(28), 1);
        given.watchdog.disarm();
        assert_eq!(given.watchdog.failed(), None, "after it has worked");
    }

    #[test]
    fn maintenance_mode_and_a_reload_switch_it_off() {
        let given = given(WatchdogMode::Automatic);
        given.watchdog.arm(in_s(28), 1);
        given.watchdog.configure(S * 30, true);
        assert_eq!(given.written(), "1V");
        given.watchdog.arm(in_s(28), 1);
        assert_eq!(given.written(), "1V");
        given.watchdog.configure(S * 30, false);
        given.watchdog.arm(in_s(28), 1);
        given.watchdog.reload(settings(given.device(), WatchdogMode::Off));
        assert!(given.watchdog.inner().device.is_none());
    }

    #[test]
    fn timeouts_are_shorter_than_the_lease_whatever_it_is() {
        let five = Some(S * 5);
        let full = |ttl: Duration| ttl - Duration::from_millis(1500).min(ttl / 10);
        for (ttl, margin, expected) in [
            (30, five, 24),
            (30, None, 15),
            (20, five, 15),
            (5, five, 2),
            (3, five, 1),
            (60, five, 51),
        ] {
            let ttl = S * ttl;
            let given = timeout(ttl, margin, full(ttl));
            assert_eq!(given, Some(S * expected), "ttl {ttl:?}");
        }
        assert_eq!(timeout(S * 30, five, S), None);
        assert!(!Path::new("/no/such/watchdog").exists());
    }
}
