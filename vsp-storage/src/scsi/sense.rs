//! Sense data: why a command failed (SPC-4 4.5).

use std::io;

/// Bytes of sense data in fixed format.
pub const FIXED_LEN: usize = 18;

/// Fixed format: the information field is valid.
const VALID: u8 = 0x80;
/// Sense key specific bytes: they are valid.
const SKSV: u8 = 0x80;
/// Sense key specific bytes: the field is one of the CDB.
const IN_CDB: u8 = 0x40;

/// Sense key, additional sense code, and what there is to say besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Its qualifier.
    pub ascq: u8,
    /// What exactly.
    pub detail: Detail,
}

/// What sense data points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Nothing.
    None,
    /// The byte of the CDB that is wrong.
    Cdb(u16),
    /// The byte of the parameter list that is wrong.
    List(u16),
    /// The information field: of a miscompare, the first byte that differs, counted from 0.
    Information(u32),
}

impl Sense {
    const fn new(key: u8, asc: u8, ascq: u8) -> Sense {
        Sense { key, asc, ascq, detail: Detail::None }
    }

    /// Nothing to report.
    pub const NONE: Sense = Sense::new(0x0, 0x00, 0x00);
    /// MEDIUM NOT PRESENT.
    pub const NO_MEDIUM: Sense = Sense::new(0x2, 0x3A, 0x00);
    /// UNRECOVERED READ ERROR.
    pub const READ_ERROR: Sense = Sense::new(0x3, 0x11, 0x00);
    /// WRITE ERROR.
    pub const WRITE_ERROR: Sense = Sense::new(0x3, 0x0C, 0x00);
    /// INTERNAL TARGET FAILURE.
    pub const INTERNAL_FAILURE: Sense = Sense::new(0x4, 0x44, 0x00);
    /// PARAMETER LIST LENGTH ERROR.
    pub const PARAMETER_LENGTH: Sense = Sense::new(0x5, 0x1A, 0x00);
    /// INVALID COMMAND OPERATION CODE.
    pub const INVALID_OPCODE: Sense = Sense::new(0x5, 0x20, 0x00);
    /// LOGICAL BLOCK ADDRESS OUT OF RANGE.
    pub const LBA_OUT_OF_RANGE: Sense = Sense::new(0x5, 0x21, 0x00);
    /// INVALID FIELD IN CDB.
    pub const INVALID_FIELD: Sense = Sense::new(0x5, 0x24, 0x00);
    /// INVALID FIELD IN PARAMETER LIST.
    pub const INVALID_PARAMETER: Sense = Sense::new(0x5, 0x26, 0x00);
    /// INVALID RELEASE OF PERSISTENT RESERVATION.
    pub const INVALID_RELEASE: Sense = Sense::new(0x5, 0x26, 0x04);
    /// SAVING PARAMETERS NOT SUPPORTED.
    pub const NO_SAVED_PARAMETERS: Sense = Sense::new(0x5, 0x39, 0x00);
    /// INSUFFICIENT REGISTRATION RESOURCES.
    pub const NO_REGISTRATION_LEFT: Sense = Sense::new(0x5, 0x55, 0x04);
    /// MODE PARAMETERS CHANGED.
    pub const MODES_CHANGED: Sense = Sense::new(0x6, 0x2A, 0x01);
    /// RESERVATIONS PREEMPTED.
    pub const RESERVATIONS_PREEMPTED: Sense = Sense::new(0x6, 0x2A, 0x03);
    /// RESERVATIONS RELEASED.
    pub const RESERVATIONS_RELEASED: Sense = Sense::new(0x6, 0x2A, 0x04);
    /// REGISTRATIONS PREEMPTED.
    pub const REGISTRATIONS_PREEMPTED: Sense = Sense::new(0x6, 0x2A, 0x05);
    /// CAPACITY DATA HAS CHANGED.
    pub const CAPACITY_CHANGED: Sense = Sense::new(0x6, 0x2A, 0x09);
    /// REPORTED LUNS DATA HAS CHANGED.
    pub const LUNS_CHANGED: Sense = Sense::new(0x6, 0x3F, 0x0E);
    /// WRITE PROTECTED.
    pub const WRITE_PROTECTED: Sense = Sense::new(0x7, 0x27, 0x00);
    /// LOGICAL UNIT SOFTWARE WRITE PROTECTED: the guest itself has asked for it (SWP in the control mode page).
    pub const SOFTWARE_WRITE_PROTECTED: Sense = Sense::new(0x7, 0x27, 0x02);
    /// SPACE ALLOCATION FAILED WRITE PROTECT.
    pub const NO_SPACE: Sense = Sense::new(0x7, 0x27, 0x07);
    /// INTERNAL TARGET FAILURE of a command that may be tried again.
    pub const TRY_AGAIN: Sense = Sense::new(0xB, 0x44, 0x00);
    /// MISCOMPARE DURING VERIFY OPERATION.
    const MISCOMPARE: Sense = Sense::new(0xE, 0x1D, 0x00);

    /// INVALID FIELD IN CDB, and which.
    pub const fn in_cdb(byte: u16) -> Sense {
        Sense { detail: Detail::Cdb(byte), ..Sense::INVALID_FIELD }
    }

    /// INVALID FIELD IN PARAMETER LIST, and which.
    pub const fn in_list(byte: u16) -> Sense {
        Sense { detail: Detail::List(byte), ..Sense::INVALID_PARAMETER }
    }

    /// MISCOMPARE DURING VERIFY OPERATION: the first byte that differs.
    pub const fn miscompare(offset: u32) -> Sense {
        Sense { detail: Detail::Information(offset), ..Sense::MISCOMPARE }
    }

    /// Sense key, code and qualifier.
    pub const fn code(self) -> (u8, u8, u8) {
        (self.key, self.asc, self.ascq)
    }

    /// Fixed format, current error.
    pub fn to_fixed(self) -> [u8; FIXED_LEN] {
        let mut bytes = [0; FIXED_LEN];
        bytes[0] = 0x70;
        bytes[2] = self.key;
        bytes[7] = (FIXED_LEN - 8) as u8;
        bytes[12] = self.asc;
        bytes[13] = self.ascq;
        match self.detail {
            Detail::None => {}
            Detail::Cdb(byte) => {
                bytes[15] = SKSV | IN_CDB;
                bytes[16..18].copy_from_slice(&byte.to_be_bytes());
            }
            Detail::List(byte) => {
                bytes[15] = SKSV;
                bytes[16..18].copy_from_slice(&byte.to_be_bytes());
            }
            Detail::Information(value) => {
                bytes[0] |= VALID;
                bytes[3..7].copy_from_slice(&value.to_be_bytes());
            }
        }
        bytes
    }

    /// Descriptor format, current error.
    pub fn to_descriptor(self) -> [u8; 8] {
        [0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0]
    }

    /// What the host's error means to the guest.
    pub fn from_io(error: &io::Error, writing: bool) -> Sense {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Sense::NO_SPACE,
            Some(libc::EROFS | libc::EPERM | libc::EBADF) if writing => Sense::WRITE_PROTECTED,
            Some(libc::ENOMEM | libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ECANCELED) => {
                Sense::TRY_AGAIN
            }
            Some(libc::EFAULT | libc::EINVAL) => Sense::INTERNAL_FAILURE,
            _ if writing => Sense::WRITE_ERROR,
            _ => Sense::READ_ERROR,
        }
    }
}

/// Whether a failed flush, or a write that had to be stable, may have cost data that was acknowledged before.
/// Not if it failed before the kernel tried anything.
pub fn may_lose_writes(error: &io::Error, writing: bool) -> bool {
    const NOT_BEGUN: [i32; 7] =
        [libc::EAGAIN, libc::EINTR, libc::ECANCELED, libc::EBADF, libc::EROFS, libc::EPERM, libc::EOPNOTSUPP];
    /// What is wrong with the request itself is seen before a write begins. A flush has nothing that could be wrong.
    const NOT_ASKED_RIGHT: [i32; 2] = [libc::EINVAL, libc::EFAULT];
    !error
        .raw_os_error()
        .is_some_and(|code| NOT_BEGUN.contains(&code) || writing && NOT_ASKED_RIGHT.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_format_is_what_hosts_parse() {
        let bytes = Sense::LBA_OUT_OF_RANGE.to_fixed();
        assert_eq!((bytes[0], bytes[2], bytes[7], bytes[12], bytes[13]), (0x70, 5, 10, 0x21, 0));
        assert_eq!(bytes[15], 0);
    }

    #[test]
    fn details_lie_where_the_standard_puts_them() {
        let bytes = Sense::in_cdb(0x0102).to_fixed();
        assert_eq!((bytes[12], &bytes[15..18]), (0x24, &[0xC0, 1, 2][..]));
        let bytes = Sense::in_list(20).to_fixed();
        assert_eq!((bytes[12], &bytes[15..18]), (0x26, &[0x80, 0, 20][..]));
        let bytes = Sense::miscompare(0x0102_0304).to_fixed();
        assert_eq!((bytes[0], bytes[2], &bytes[3..7]), (0xF0, 0xE, &[1, 2, 3, 4][..]));
    }

    #[test]
    fn what_was_refused_at_once_has_lost_nothing() {
        let lost = |code, writing| may_lose_writes(&io::Error::from_raw_os_error(code), writing);
        for code in [libc::EINVAL, libc::EFAULT] {
            assert_eq!((lost(code, true), lost(code, false)), (false, true));
        }
        assert!(lost(libc::EIO, true) && !lost(libc::EROFS, false));
    }

    #[test]
    fn host_errors_have_a_meaning() {
        let from = |code, writing| Sense::from_io(&io::Error::from_raw_os_error(code), writing);
        assert_eq!(from(libc::EIO, false), Sense::READ_ERROR);
        assert_eq!(from(libc::EIO, true), Sense::WRITE_ERROR);
        assert_eq!(from(libc::ENOSPC, true), Sense::NO_SPACE);
        assert_eq!(from(libc::EROFS, true), Sense::WRITE_PROTECTED);
        assert_eq!(from(libc::ENOMEM, false), Sense::TRY_AGAIN);
    }
}
