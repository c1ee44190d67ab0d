//! The three requests of Linux's watchdog interface (kernel documentation, "The Linux Watchdog driver API"). The only
//! place of this program where the compiler cannot see that a call is sound.
#![allow(
    unsafe_code,
    reason = "an ioctl's argument is only known to the driver that answers it"
)]

use std::{io, os::fd::AsFd};

use rustix::ioctl::{Getter, Updater, ioctl, opcode};

/// Letter of the interface.
const BASE: u8 = b'W';
const GET_SUPPORT: rustix::ioctl::Opcode = opcode::read::<Info>(BASE, 0);
const SET_TIMEOUT: rustix::ioctl::Opcode = opcode::read_write::<i32>(BASE, 6);
const GET_TIMEOUT: rustix::ioctl::Opcode = opcode::read::<i32>(BASE, 7);

/// `struct watchdog_info`.
#[repr(C)]
struct Info {
    options: u32,
    firmware_version: u32,
    identity: [u8; 32],
}

/// What a driver can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Support {
    /// Its timeout can be set.
    pub(super) timeout: bool,
    /// It can be switched off again (`WDIOF_MAGICCLOSE`), unless the kernel was told never to.
    pub(super) disarm: bool,
    /// Its name.
    pub(super) identity: String,
}

/// Asks the driver what it can do.
pub(super) fn support(device: impl AsFd) -> io::Result<Support> {
    const SETTIMEOUT: u32 = 0x0080;
    const MAGICCLOSE: u32 = 0x0100;
    // SAFETY: WDIOC_GETSUPPORT writes one `struct watchdog_info`, whose layout `Info` has; every bit pattern is valid.
    let info = unsafe { ioctl(device, Getter::<GET_SUPPORT, Info>::new()) }?;
    let name = info.identity.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Support {
        timeout: info.options & SETTIMEOUT != 0,
        disarm: info.options & MAGICCLOSE != 0,
        identity: String::from_utf8_lossy(name).into_owned(),
    })
}

/// Sets the timeout in seconds; returns the one the driver took.
pub(super) fn set_timeout(device: impl AsFd, seconds: i32) -> io::Result<i32> {
    let mut value = seconds;
    // SAFETY: WDIOC_SETTIMEOUT reads and writes one `int`, which outlives the call.
    unsafe { ioctl(device, Updater::<SET_TIMEOUT, i32>::new(&mut value)) }?;
    Ok(value)
}

/// The timeout in seconds.
pub(super) fn timeout(device: impl AsFd) -> io::Result<i32> {
    // SAFETY: WDIOC_GETTIMEOUT writes one `int`.
    let seconds = unsafe { ioctl(device, Getter::<GET_TIMEOUT, i32>::new()) }?;
    Ok(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_have_the_numbers_of_the_kernels_header() {
        // include/uapi/linux/watchdog.h on x86-64 and arm64.
        assert_eq!(u64::from(GET_SUPPORT), 0x8028_5700);
        assert_eq!(u64::from(SET_TIMEOUT), 0xC004_5706);
        assert_eq!(u64::from(GET_TIMEOUT), 0x8004_5707);
    }

    #[test]
    fn what_is_no_watchdog_refuses() {
        let file = tempfile::tempfile().expect("a file");
        assert!(support(&file).is_err());
        assert!(set_timeout(&file, 5).is_err());
        assert!(timeout(&file).is_err());
    }
}
