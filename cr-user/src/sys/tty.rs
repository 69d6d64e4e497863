//! Terminals and pseudo-terminals (`ioctl_tty(2)`).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::sys::check;

/// `struct termios2` of `asm-generic/termbits.h`.
#[derive(
    serde::Serialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize, Debug, Clone, Copy, Default, PartialEq, Eq,
)]
pub struct Settings {
    /// `c_iflag`.
    pub input: u32,
    /// `c_oflag`.
    pub output: u32,
    /// `c_cflag`.
    pub control: u32,
    /// `c_lflag`.
    pub local: u32,
    /// The line discipline.
    pub line: u8,
    /// `c_cc`.
    pub characters: [u8; 19],
    /// Input and output speed.
    pub speeds: [u32; 2],
}

/// Columns and rows (`struct winsize`): rows, columns, and both in pixels.
pub type Size = [u16; 4];

/// What a terminal tells as one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// The number of a master's pair.
    Pair,
    /// Whether the other end of a master is locked.
    Locked,
    /// Whether a master reads packets.
    Packets,
    /// Whether nobody else may open it.
    Exclusive,
    /// Its line discipline.
    Discipline,
    /// Its device number, as `new_encode_dev` of the kernel packs it; also of what `/dev/tty` stands for.
    Device,
    /// The session that it controls. `ENOTTY` if there is none, or not ours; a master tells anybody.
    Session,
    /// The process group in the foreground; as above.
    Foreground,
}

/// Asks for a number.
///
/// # Errors
/// `ENOTTY` when it is no terminal, or not of that kind; `EIO` when it was hung up.
pub fn number(fd: BorrowedFd<'_>, what: Number) -> nix::Result<i32> {
    let request = match what {
        Number::Pair => libc::TIOCGPTN,
        Number::Locked => libc::TIOCGPTLCK,
        Number::Packets => libc::TIOCGPKT,
        Number::Exclusive => libc::TIOCGEXCL,
        Number::Discipline => libc::TIOCGETD,
        Number::Device => libc::TIOCGDEV,
        Number::Session => libc::TIOCGSID,
        Number::Foreground => libc::TIOCGPGRP,
    };
    let mut value = 0i32;
    // SAFETY: each of these requests writes one int.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), request, &raw mut value)))? };
    Ok(value)
}

/// What is set by one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Whether the other end of a master is locked.
    Locked,
    /// Whether a master reads packets.
    Packets,
    /// The process group in the foreground.
    Foreground,
}

/// Sets a number.
///
/// # Errors
/// `ENOTTY` when it is no terminal, or not of that kind; `EPERM` for a group of another session.
pub fn set_number(fd: BorrowedFd<'_>, what: Setting, value: i32) -> nix::Result<()> {
    let request = match what {
        Setting::Locked => libc::TIOCSPTLCK,
        Setting::Packets => libc::TIOCPKT,
        Setting::Foreground => libc::TIOCSPGRP,
    };
    // SAFETY: each of these requests reads one int.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), request, &raw const value))) }.map(drop)
}

/// Lets nobody else open it (`TIOCEXCL`).
///
/// # Errors
/// `ENOTTY`.
pub fn make_exclusive(fd: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: no memory is passed.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::TIOCEXCL))) }.map(drop)
}

/// Hangs it up (`TIOCVHANGUP`): everybody who has it open finds it dead.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn hang_up(fd: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: no memory is passed.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::TIOCVHANGUP))) }.map(drop)
}

/// Opens the other end of a master (`TIOCGPTPEER`), whatever the file system shows under its name.
///
/// # Errors
/// `EIO` when it is locked.
pub fn open_peer(master: BorrowedFd<'_>, flags: i32) -> nix::Result<OwnedFd> {
    let flags = flags | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: no memory is passed; the descriptor returned is new and ours.
    unsafe {
        let fd = check(libc::c_long::from(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags)))?;
        Ok(OwnedFd::from_raw_fd(fd as i32))
    }
}

/// Its settings; asked of a master, those of the other end.
///
/// # Errors
/// `ENOTTY` when it is no terminal, `EIO` when it was hung up.
pub fn settings(fd: BorrowedFd<'_>) -> nix::Result<Settings> {
    let mut raw = libc::termios2 {
        c_iflag: 0,
        c_oflag: 0,
        c_cflag: 0,
        c_lflag: 0,
        c_line: 0,
        c_cc: [0; 19],
        c_ispeed: 0,
        c_ospeed: 0,
    };
    // SAFETY: the kernel writes one `struct termios2`.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::TCGETS2, &raw mut raw)))? };
    Ok(Settings {
        input: raw.c_iflag,
        output: raw.c_oflag,
        control: raw.c_cflag,
        local: raw.c_lflag,
        line: raw.c_line,
        characters: raw.c_cc,
        speeds: [raw.c_ispeed, raw.c_ospeed],
    })
}

/// Sets them at once; by a master, those of the other end.
///
/// # Errors
/// As [`settings`].
pub fn set_settings(fd: BorrowedFd<'_>, settings: &Settings) -> nix::Result<()> {
    let raw = libc::termios2 {
        c_iflag: settings.input,
        c_oflag: settings.output,
        c_cflag: settings.control,
        c_lflag: settings.local,
        c_line: settings.line,
        c_cc: settings.characters,
        c_ispeed: settings.speeds[0],
        c_ospeed: settings.speeds[1],
    };
    // SAFETY: the kernel reads one `struct termios2`.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::TCSETS2, &raw const raw))) }.map(drop)
}

/// Whether some of its settings may not be changed (`TIOCGLCKTRMIOS`).
///
/// # Errors
/// As [`settings`].
pub fn are_settings_locked(fd: BorrowedFd<'_>) -> nix::Result<bool> {
    // `struct termios` of `asm-generic/termbits.h`.
    let mut raw = [0u8; 36];
    // SAFETY: the kernel writes one `struct termios`, which is 36 bytes.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::TIOCGLCKTRMIOS, raw.as_mut_ptr())))? };
    Ok(raw != [0; 36])
}

/// Its size.
///
/// # Errors
/// As [`settings`].
pub fn size(fd: BorrowedFd<'_>) -> nix::Result<Size> {
    let mut raw = [0u16; 4];
    // SAFETY: the kernel writes one `struct winsize`, which is four 16-bit numbers.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, raw.as_mut_ptr())))? };
    Ok(raw)
}

/// Sets the size of both ends, and tells the foreground.
///
/// # Errors
/// As [`settings`].
pub fn set_size(fd: BorrowedFd<'_>, size: Size) -> nix::Result<()> {
    // SAFETY: the kernel reads one `struct winsize`, which is four 16-bit numbers.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, size.as_ptr()))) }.map(drop)
}

/// Stops its output (`tcflow(3)` with `TCOOFF`).
///
/// # Errors
/// As [`settings`].
pub fn stop_output(fd: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: no memory is passed.
    unsafe { check(libc::c_long::from(libc::ioctl(fd.as_raw_fd(), libc::TCXONC, libc::TCOOFF))) }.map(drop)
}
