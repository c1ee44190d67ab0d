//! The device itself: opening it starts its timer, a write starts it anew, and a `V` before closing switches it off.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use super::ioctl;
use crate::config::WatchdogDriver;

/// An open device, whose timer runs. Dropped without [`Device::disarm`], it goes on running.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
    driver: WatchdogDriver,
    /// After so long without a word it resets the host.
    pub(super) timeout: Duration,
    /// It can be switched off again.
    pub(super) can_disarm: bool,
    /// Its timeout can be set.
    settable: bool,
    /// Name of the driver.
    pub(super) identity: String,
}

impl Device {
    /// Opens the device and sets its timeout, in whole seconds. What it cannot do is an error; a device that was opened
    /// for nothing is switched off again.
    pub(super) fn open(path: &Path, driver: WatchdogDriver, timeout: Duration) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).open(path)?;
        let mut device = Self {
            file,
            driver,
            timeout,
            can_disarm: true,
            settable: true,
            identity: "testing".to_owned(),
        };
        if driver == WatchdogDriver::Testing {
            return Ok(device);
        }
        let ready = device.prepare(timeout);
        match ready {
            Ok(()) => Ok(device),
            Err(error) => {
                // Nothing is known of it; this is the best that can be done.
                let _unknown = device.write(b"V");
                Err(error)
            }
        }
    }

    fn prepare(&mut self, timeout: Duration) -> io::Result<()> {
        let support = ioctl::support(&self.file)?;
        (self.can_disarm, self.settable, self.identity) = (support.disarm, support.timeout, support.identity);
        self.set_timeout(timeout)
    }

    /// Sets another timeout.
    pub(super) fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        let wanted = i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX);
        let taken = match self.driver {
            WatchdogDriver::Testing => wanted,
            WatchdogDriver::Linux if self.settable => ioctl::set_timeout(&self.file, wanted)?,
            WatchdogDriver::Linux => ioctl::timeout(&self.file)?,
        };
        self.take_timeout(taken, timeout)
    }

    /// A device that waits longer than it may is none: another could lead before it resets this host.
    fn take_timeout(&mut self, seconds: i32, wanted: Duration) -> io::Result<()> {
        let timeout = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        if timeout > wanted || timeout.is_zero() {
            let text = format!(
                "its timeout is {seconds} s, at most {} s are needed",
                wanted.as_secs()
            );
            return Err(io::Error::other(text));
        }
        self.timeout = timeout;
        Ok(())
    }

    /// Starts its timer anew.
    pub(super) fn keep_alive(&mut self) -> io::Result<()> {
        self.write(b"1")
    }

    /// Switches it off.
    pub(super) fn disarm(mut self) -> io::Result<()> {
        self.write(b"V")
    }

    fn write(&mut self, word: &[u8]) -> io::Result<()> {
        self.file.write_all(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_device_is_refused_by_the_real_driver() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let refused = Device::open(file.path(), WatchdogDriver::Linux, Duration::from_secs(5));
        assert!(refused.is_err());
        assert_eq!(
            std::fs::read(file.path()).expect("readable"),
            b"V",
            "what was opened is closed"
        );
        assert!(
            Device::open(
                Path::new("/no/such"),
                WatchdogDriver::Testing,
                Duration::from_secs(5)
            )
            .is_err()
        );
    }

    #[test]
    fn a_timeout_that_is_too_long_is_as_bad_as_none() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let five = Duration::from_secs(5);
        let mut device = Device::open(file.path(), WatchdogDriver::Testing, five).expect("a file");
        assert!(device.take_timeout(6, five).is_err() && device.take_timeout(0, five).is_err());
        assert!(device.take_timeout(4, five).is_ok());
        assert_eq!(device.timeout, Duration::from_secs(4));
    }
}
