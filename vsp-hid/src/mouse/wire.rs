//! Messages of the synthetic mouse, as Linux' `drivers/hid/hid-hyperv.c` has them: in-band packets, each with a pipe's header in front
//! (`struct pipe_prt_msg`), then a kind and the length of what belongs to it, in little-endian order, packed.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::report::{DESCRIPTOR, Report};
use crate::instrument::GuestFault;

/// The version that this device speaks (`SYNTHHID_INPUT_VERSION`): 2.0.
pub const VERSION_2_0: u32 = 2 << 16;

/// `PIPE_MESSAGE_DATA`.
pub const PIPE_DATA: u32 = 1;

/// Numbers of the kinds (`enum synthhid_msg_type`).
pub mod kind {
    /// Guest to host: a version.
    pub const PROTOCOL_REQUEST: u32 = 0;
    /// Host to guest: whether it is accepted.
    pub const PROTOCOL_RESPONSE: u32 = 1;
    /// Host to guest: what kind of HID device this is.
    pub const INITIAL_DEVICE_INFO: u32 = 2;
    /// Guest to host: understood.
    pub const INITIAL_DEVICE_INFO_ACK: u32 = 3;
    /// Host to guest: a report.
    pub const INPUT_REPORT: u32 = 4;
}

/// What Linux' driver binds to (`mousevsc_devices`): Microsoft's vendor id, and this product of theirs.
pub const VENDOR: u16 = 0x045e;
/// The product.
pub const PRODUCT: u16 = 0x0621;

/// What a guest says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestMessage {
    /// It wants to speak this version.
    ProtocolRequest(u32),
    /// It knows what kind of device this is, and is ready for reports.
    DeviceInfoAck,
}

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMessage {
    /// Whether the version is accepted.
    ProtocolResponse {
        /// The one that was asked for.
        version: u32,
        /// It is.
        accepted: bool,
    },
    /// What kind of device this is: [`DESCRIPTOR`].
    DeviceInfo,
    /// A report.
    Report(Report),
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PipeHeader {
    pipe_type: U32,
    size: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    kind: U32,
    size: U32,
}

/// `struct synthhid_protocol_response`, without the header.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Response {
    version: U32,
    approved: u8,
}

/// `struct hv_input_dev_info`, then `struct hid_descriptor` of one report descriptor (HID 1.11, 6.2.1).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct DeviceInfo {
    size: U32,
    vendor: U16,
    product: U16,
    version: U16,
    reserved: [U16; 11],
    descriptor_len: u8,
    descriptor_type: u8,
    hid_version: U16,
    country: u8,
    descriptors: u8,
    report_type: u8,
    report_len: U16,
}

/// Bytes of `struct hv_input_dev_info`.
const DEV_INFO: usize = 32;
/// Bytes of a HID descriptor.
const HID_DESCRIPTOR: usize = size_of::<DeviceInfo>() - DEV_INFO;
const _: () = assert!(HID_DESCRIPTOR == 9);

impl GuestMessage {
    /// Reads a message; bytes behind it are padding.
    pub fn parse(payload: &[u8]) -> Result<GuestMessage, GuestFault> {
        let (pipe, rest) = fields::<PipeHeader>(payload, 0)?;
        if pipe.pipe_type != PIPE_DATA {
            return Err(GuestFault::NoPipe(pipe.pipe_type.get()));
        }
        let at = size_of::<PipeHeader>();
        let size = pipe.size.get() as usize;
        let need = size.saturating_add(at);
        let message = rest.get(..size).ok_or(GuestFault::TooShort { have: payload.len(), need })?;
        let (header, body) = fields::<Header>(message, at)?;
        // What the header says of the length is what the pipe's says already, less the header: nobody looks at it.
        match header.kind.get() {
            kind::PROTOCOL_REQUEST => {
                let (version, _) = fields::<U32>(body, at + size_of::<Header>())?;
                Ok(GuestMessage::ProtocolRequest(version.get()))
            }
            kind::INITIAL_DEVICE_INFO_ACK => Ok(GuestMessage::DeviceInfoAck),
            other => Err(GuestFault::Unknown(other)),
        }
    }

    /// As the guest's driver writes it.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            GuestMessage::ProtocolRequest(version) => {
                message(kind::PROTOCOL_REQUEST, &[&version.to_le_bytes()])
            }
            GuestMessage::DeviceInfoAck => message(kind::INITIAL_DEVICE_INFO_ACK, &[&[0]]),
        }
    }
}

impl HostMessage {
    /// For the guest.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            HostMessage::ProtocolResponse { version, accepted } => {
                let response = Response { version: (*version).into(), approved: (*accepted).into() };
                message(kind::PROTOCOL_RESPONSE, &[response.as_bytes()])
            }
            HostMessage::DeviceInfo => {
                let info = DeviceInfo {
                    size: (DEV_INFO as u32).into(),
                    vendor: VENDOR.into(),
                    product: PRODUCT.into(),
                    version: 1.into(),
                    reserved: [U16::ZERO; 11],
                    descriptor_len: HID_DESCRIPTOR as u8,
                    // HID, of version 1.11, for no country, with one descriptor: of reports.
                    descriptor_type: 0x21,
                    hid_version: 0x0111.into(),
                    country: 0,
                    descriptors: 1,
                    report_type: 0x22,
                    report_len: (DESCRIPTOR.len() as u16).into(),
                };
                message(kind::INITIAL_DEVICE_INFO, &[info.as_bytes(), &DESCRIPTOR])
            }
            HostMessage::Report(report) => message(kind::INPUT_REPORT, &[&report.to_bytes()]),
        }
    }

    /// As the guest's driver reads it; for tests.
    pub fn parse(payload: &[u8]) -> Option<HostMessage> {
        let (pipe, rest) = PipeHeader::read_from_prefix(payload).ok()?;
        let message = rest.get(..pipe.size.get() as usize).filter(|_| pipe.pipe_type == PIPE_DATA)?;
        let (header, body) = Header::read_from_prefix(message).ok()?;
        if header.size.get() as usize != body.len() {
            return None;
        }
        match header.kind.get() {
            kind::PROTOCOL_RESPONSE => {
                let response = Response::read_from_bytes(body).ok()?;
                let (version, accepted) = (response.version.get(), response.approved != 0);
                Some(HostMessage::ProtocolResponse { version, accepted })
            }
            kind::INITIAL_DEVICE_INFO => {
                let (info, reports) = DeviceInfo::read_from_prefix(body).ok()?;
                let whole = info.report_len.get() as usize == reports.len() && reports == DESCRIPTOR;
                whole.then_some(HostMessage::DeviceInfo)
            }
            kind::INPUT_REPORT => body.try_into().ok().map(Report::of_bytes).map(HostMessage::Report),
            _ => None,
        }
    }
}

/// A whole message of these parts.
fn message(kind: u32, parts: &[&[u8]]) -> Vec<u8> {
    let body: usize = parts.iter().map(|part| part.len()).sum();
    let pipe = PipeHeader { pipe_type: PIPE_DATA.into(), size: ((size_of::<Header>() + body) as u32).into() };
    let header = Header { kind: kind.into(), size: (body as u32).into() };
    let mut bytes = [pipe.as_bytes(), header.as_bytes()].concat();
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// What comes next, and the rest; `before` bytes have come before it.
fn fields<F>(bytes: &[u8], before: usize) -> Result<(F, &[u8]), GuestFault>
where
    F: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let short = GuestFault::TooShort { have: before + bytes.len(), need: before + size_of::<F>() };
    F::read_from_prefix(bytes).map_err(|_| short)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_driver() {
        // What `mousevsc_connect_to_vsp` sends: three bytes more than the message, then padding.
        let mut request = vec![1, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 2, 0];
        assert_eq!(GuestMessage::ProtocolRequest(VERSION_2_0).encode(), request);
        request.extend([0x55; 4]);
        assert_eq!(GuestMessage::parse(&request), Ok(GuestMessage::ProtocolRequest(VERSION_2_0)));
        let ack = [1, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(GuestMessage::DeviceInfoAck.encode(), ack);
        let response = HostMessage::ProtocolResponse { version: VERSION_2_0, accepted: true }.encode();
        assert_eq!(response, [1, 0, 0, 0, 13, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 2, 0, 1]);
        // `mousevsc_on_receive` takes no more than this: it copies it into a `struct mousevsc_prt_msg` of 24 bytes, and takes 11 for the header.
        assert!(response[4] + 11 <= 24);
    }

    #[test]
    fn the_device_is_one_that_the_driver_takes() {
        let info = HostMessage::DeviceInfo.encode();
        // `mousevsc_on_receive_device_info` wants `struct synthhid_device_info` at least: 49 bytes behind the pipe's header.
        assert!(info.len() >= 8 + 49);
        assert_eq!(info[16..20], 32u32.to_le_bytes());
        assert_eq!((&info[20..22], &info[22..24]), (&[0x5e, 0x04][..], &[0x21, 0x06][..]));
        let (len, report_len) = (info[48], u16::from_le_bytes([info[55], info[56]]));
        assert_eq!((len, usize::from(report_len)), (9, DESCRIPTOR.len()));
        assert_eq!(info[57..], DESCRIPTOR);
        assert_eq!(HostMessage::parse(&info), Some(HostMessage::DeviceInfo));
    }

    #[test]
    fn what_is_none_is_refused() {
        let request = GuestMessage::ProtocolRequest(VERSION_2_0).encode();
        for len in 0..request.len() {
            let parsed = GuestMessage::parse(&request[..len]);
            assert!(
                matches!(parsed, Err(GuestFault::TooShort { have, need }) if have == len && need > len),
                "{len}"
            );
        }
        for size in [0, 7, 8, 11, 13, u32::MAX] {
            let mut lie = request.clone();
            lie[4..8].copy_from_slice(&size.to_le_bytes());
            assert!(matches!(GuestMessage::parse(&lie), Err(GuestFault::TooShort { .. })), "{size}");
        }
        for pipe_type in [0, 2, u32::MAX] {
            let mut other = request.clone();
            other[..4].copy_from_slice(&pipe_type.to_le_bytes());
            assert_eq!(GuestMessage::parse(&other), Err(GuestFault::NoPipe(pipe_type)));
        }
        for kind in [1, 2, 4, 5, u32::MAX] {
            assert_eq!(GuestMessage::parse(&message(kind, &[&[0; 8]])), Err(GuestFault::Unknown(kind)));
        }
    }
}
