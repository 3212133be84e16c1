//! Synthvid: the messages of the synthetic video device, versions 3.2 to 3.5, as `hyperv_fb` and `hyperv_drm` send and
//! take them (Linux `drivers/video/fbdev/hyperv_fb.c`, `drivers/gpu/drm/hyperv/hyperv_drm_proto.c`).
//!
//! Each travels in an in-band packet of its own, behind a pipe header and a message header whose sizes count the message
//! header too.

use crate::error::Error;

/// A version as it is on the wire.
pub const fn version(major: u16, minor: u16) -> u32 {
    (minor as u32) << 16 | major as u32
}

/// Windows 8: what a guest falls back to.
pub const VERSION_3_2: u32 = version(3, 2);
/// Windows 8.1.
pub const VERSION_3_3: u32 = version(3, 3);
/// Windows 10, first.
pub const VERSION_3_4: u32 = version(3, 4);
/// Windows 10: the host says which resolutions there are.
pub const VERSION_3_5: u32 = version(3, 5);

/// To the device: proposal of a version.
pub const VERSION_REQUEST: u32 = 1;
/// From the device: its answer.
pub const VERSION_RESPONSE: u32 = 2;
/// To the device: where video memory is to be.
pub const VRAM_LOCATION: u32 = 3;
/// From the device: it is there.
pub const VRAM_LOCATION_ACK: u32 = 4;
/// To the device: the mode.
pub const SITUATION_UPDATE: u32 = 5;
/// From the device: it knows.
pub const SITUATION_UPDATE_ACK: u32 = 6;
/// To the device: where the pointer is.
pub const POINTER_POSITION: u32 = 7;
/// To the device: what the pointer looks like.
pub const POINTER_SHAPE: u32 = 8;
/// From the device: what it wants to be told.
pub const FEATURE_CHANGE: u32 = 9;
/// To the device: what has been drawn.
pub const DIRT: u32 = 10;
/// To the device: which resolutions are there? Since 3.5.
pub const RESOLUTION_REQUEST: u32 = 13;
/// From the device: its answer.
pub const RESOLUTION_RESPONSE: u32 = 14;

/// The only kind of message in a pipe.
pub const PIPE_DATA: u32 = 1;
/// Bytes of the pipe header.
pub const PIPE_HEADER: usize = 8;
/// Bytes of the message header.
pub const HEADER: usize = 8;
/// Bytes of an EDID block.
pub const EDID: usize = 128;
/// Most resolutions in an answer.
pub const RESOLUTIONS: usize = 64;
/// A part of a pointer's shape that is the last one.
pub const POINTER_COMPLETE: u8 = 0xff;
/// Widest and highest pointer.
pub const POINTER_LARGEST: u32 = 96;
/// Most bytes of a pointer's pixels in one message: half of what the drivers' receive buffer has.
pub const POINTER_PART: usize = 0x2000;

/// A message to the device with both headers.
pub fn message(kind: u32, body: &[&[u8]]) -> Vec<u8> {
    let size = (HEADER + body.iter().map(|part| part.len()).sum::<usize>()) as u32;
    let mut bytes = Vec::with_capacity(PIPE_HEADER + size as usize);
    for word in [PIPE_DATA, size, kind, size] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    body.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes
}

/// A rectangle: `x2` and `y2` are outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rect {
    /// Left.
    pub x1: i32,
    /// Top.
    pub y1: i32,
    /// Right.
    pub x2: i32,
    /// Bottom.
    pub y2: i32,
}

/// What is shown of video memory, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// There is a picture.
    pub active: bool,
    /// Where it begins in video memory.
    pub offset: u32,
    /// Bits of a pixel.
    pub depth: u8,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Bytes from one row to the next.
    pub pitch: u32,
}

impl Situation {
    /// A picture of 32 bits a pixel at the beginning of video memory, as the drivers have it.
    pub const fn of(width: u32, height: u32) -> Self {
        Self { active: true, offset: 0, depth: 32, width, height, pitch: width.wrapping_mul(4) }
    }

    fn encode(&self) -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[0] = self.active.into();
        bytes[1..5].copy_from_slice(&self.offset.to_le_bytes());
        bytes[5] = self.depth;
        bytes[6..10].copy_from_slice(&self.width.to_le_bytes());
        bytes[10..14].copy_from_slice(&self.height.to_le_bytes());
        bytes[14..].copy_from_slice(&self.pitch.to_le_bytes());
        bytes
    }
}

/// What a pointer looks like: `bits` are 32 a pixel (ARGB) or, if not `argb`, two masks of a bit a pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// 32 bits a pixel.
    pub argb: bool,
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Which pixel points.
    pub hot: (u32, u32),
    /// The pixels.
    pub bits: Vec<u8>,
}

impl Shape {
    /// What the drivers send so that the host draws none: a single pixel that cannot be seen.
    pub fn none() -> Self {
        Self { argb: true, width: 1, height: 1, hot: (0, 0), bits: vec![0, 1, 1, 1] }
    }

    /// The messages: parts of [`POINTER_PART`] bytes, numbered from 0 on but for the last.
    pub fn messages(&self) -> Vec<Vec<u8>> {
        let parts: Vec<&[u8]> = match self.bits.is_empty() {
            true => vec![&[]],
            false => self.bits.chunks(POINTER_PART).collect(),
        };
        let last = parts.len() - 1;
        let number = |n: usize| if n == last { POINTER_COMPLETE } else { n as u8 };
        parts.iter().enumerate().map(|(n, part)| self.part(number(n), part)).collect()
    }

    /// One message, whatever it says.
    pub fn part(&self, index: u8, bits: &[u8]) -> Vec<u8> {
        let mut head = vec![index, self.argb.into()];
        for word in [self.width, self.height, self.hot.0, self.hot.1] {
            head.extend_from_slice(&word.to_le_bytes());
        }
        message(POINTER_SHAPE, &[&head, bits])
    }
}

/// Proposes a version.
pub fn version_request(version: u32) -> Vec<u8> {
    message(VERSION_REQUEST, &[&version.to_le_bytes()])
}

/// Asks for resolutions, so many at most.
pub fn resolution_request(most: u8) -> Vec<u8> {
    message(RESOLUTION_REQUEST, &[&[most]])
}

/// Says where video memory is to be.
pub fn vram_location(context: u64, gpa: Option<u64>) -> Vec<u8> {
    let specified = [u8::from(gpa.is_some())];
    message(VRAM_LOCATION, &[&context.to_le_bytes(), &specified, &gpa.unwrap_or(0).to_le_bytes()])
}

/// Says what is shown, by so many outputs.
pub fn situation_update(context: u64, situations: &[Situation]) -> Vec<u8> {
    let count = [situations.len() as u8];
    let outputs: Vec<u8> = situations.iter().flat_map(Situation::encode).collect();
    message(SITUATION_UPDATE, &[&context.to_le_bytes(), &count, &outputs])
}

/// Says where the pointer is.
pub fn pointer_position(visible: bool, x: i32, y: i32) -> Vec<u8> {
    message(POINTER_POSITION, &[&[visible.into(), 0], &x.to_le_bytes(), &y.to_le_bytes()])
}

/// Says what has been drawn: 255 rectangles at most.
pub fn dirt(rects: &[Rect]) -> Vec<u8> {
    let head = [0, rects.len() as u8];
    let words = rects.iter().flat_map(|rect| [rect.x1, rect.y1, rect.x2, rect.y2]);
    let bytes: Vec<u8> = words.flat_map(i32::to_le_bytes).collect();
    message(DIRT, &[&head, &bytes])
}

/// What the device wants to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// What has been drawn.
    pub dirt: bool,
    /// Where the pointer is.
    pub pointer_position: bool,
    /// What it looks like.
    pub pointer_shape: bool,
    /// The mode.
    pub situation: bool,
}

/// What the device can show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolutions {
    /// The monitor's description.
    pub edid: [u8; EDID],
    /// Which one is meant.
    pub preferred: u8,
    /// They are standard ones.
    pub standard: bool,
    /// Width and height.
    pub modes: Vec<(u16, u16)>,
}

/// What the device says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromDevice {
    /// Answer to a proposal.
    Version {
        /// The version that was proposed, or another one.
        version: u32,
        /// Not 0 if it was accepted.
        accepted: u8,
        /// How many pictures there can be.
        outputs: u8,
    },
    /// Video memory is where it was to be, if the context is the one that was sent.
    VramLocation(u64),
    /// The mode is known.
    Situation(u64),
    /// What it wants to be told.
    Features(Features),
    /// What it can show.
    Resolutions(Box<Resolutions>),
}

impl FromDevice {
    /// Reads the payload of a packet, which is padded to 8 bytes.
    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let word =
            |at: usize| payload.get(at..at + 4).and_then(|w| Some(u32::from_le_bytes(*w.first_chunk()?)));
        let broken =
            |why: &str| Error::Protocol(format!("{why}: {:02x?}", &payload[..payload.len().min(64)]));
        let (Some(pipe), Some(size), Some(kind), Some(inner)) = (word(0), word(4), word(8), word(12)) else {
            return Err(broken("a message without headers"));
        };
        let end = PIPE_HEADER + size as usize;
        if pipe != PIPE_DATA || size < HEADER as u32 || end > payload.len() || payload.len() - end >= 8 {
            return Err(broken("the pipe header is wrong"));
        }
        if inner != size {
            return Err(broken("the two sizes differ"));
        }
        let body = &payload[PIPE_HEADER + HEADER..end];
        Self::body(kind, body).ok_or_else(|| broken("a message of an unknown kind or a wrong length"))
    }

    fn body(kind: u32, body: &[u8]) -> Option<Self> {
        let context = || Some(u64::from_le_bytes(body.try_into().ok()?));
        match kind {
            VERSION_RESPONSE if body.len() == 6 => Some(Self::Version {
                version: u32::from_le_bytes(*body.first_chunk()?),
                accepted: body[4],
                outputs: body[5],
            }),
            VRAM_LOCATION_ACK => context().map(Self::VramLocation),
            SITUATION_UPDATE_ACK => context().map(Self::Situation),
            FEATURE_CHANGE => match *body {
                [dirt, position, shape, situation]
                    if [dirt, position, shape, situation].iter().all(|&b| b < 2) =>
                {
                    Some(Self::Features(Features {
                        dirt: dirt == 1,
                        pointer_position: position == 1,
                        pointer_shape: shape == 1,
                        situation: situation == 1,
                    }))
                }
                _ => None,
            },
            RESOLUTION_RESPONSE => resolutions(body).map(Box::new).map(Self::Resolutions),
            _ => None,
        }
    }
}

/// The entries may end with the count or fill the whole table: drivers take both.
fn resolutions(body: &[u8]) -> Option<Resolutions> {
    let (edid, rest) = body.split_first_chunk::<EDID>()?;
    let ([count, preferred, standard], table) = rest.split_first_chunk::<3>()?;
    let full = table.len() == RESOLUTIONS * 4 && usize::from(*count) <= RESOLUTIONS;
    if !full && table.len() != usize::from(*count) * 4 {
        return None;
    }
    let half = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let modes = table.chunks_exact(4).take(usize::from(*count));
    let modes = modes.map(|entry| (half(entry, 0), half(entry, 2))).collect();
    Some(Resolutions { edid: *edid, preferred: *preferred, standard: *standard != 0, modes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn what_is_sent_has_the_drivers_lengths() {
        // Bytes of the structures, the pipe header included.
        assert_eq!(version_request(VERSION_3_5).len(), 20);
        assert_eq!(vram_location(1, Some(2)).len(), 33);
        assert_eq!(situation_update(0, &[Situation::of(640, 480)]).len(), 43);
        assert_eq!(pointer_position(true, 0, 0).len(), 26);
        assert_eq!(Shape::none().messages()[0].len(), 38);
        assert_eq!(dirt(&[Rect { x1: 0, y1: 0, x2: 1, y2: 1 }]).len(), 34);
        assert_eq!(resolution_request(64).len(), 17);
        let pixels = vec![7; 96 * 96 * 4];
        let large = Shape { bits: pixels, width: 96, height: 96, ..Shape::none() }.messages();
        let numbers: Vec<u8> = large.iter().map(|message| message[16]).collect();
        assert_eq!(numbers, [0, 1, 2, 3, POINTER_COMPLETE]);
    }

    #[test]
    fn what_comes_is_read() {
        let body = [1u8, 0, 1, 1];
        let features = Features { dirt: true, pointer_position: false, pointer_shape: true, situation: true };
        let parsed = FromDevice::parse(&padded(message(FEATURE_CHANGE, &[&body]))).expect("good");
        assert_eq!(parsed, FromDevice::Features(features));
        let ack = padded(message(VRAM_LOCATION_ACK, &[&7u64.to_le_bytes()]));
        assert_eq!(FromDevice::parse(&ack).expect("good"), FromDevice::VramLocation(7));
        let table = [[0x80, 2, 0xe0, 1], [0, 4, 0, 3]].concat();
        let answer = padded(message(RESOLUTION_RESPONSE, &[&[0; EDID], &[2, 1, 0], &table]));
        let FromDevice::Resolutions(found) = FromDevice::parse(&answer).expect("good") else {
            panic!("kind")
        };
        assert_eq!((found.preferred, found.modes), (1, vec![(640, 480), (1024, 768)]));
    }

    #[test]
    fn nonsense_is_an_error() {
        let good = padded(message(VRAM_LOCATION_ACK, &[&7u64.to_le_bytes()]));
        for (at, value) in [(0, 2), (4, 0), (4, 200), (8, 77), (12, 8)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(FromDevice::parse(&bad).is_err(), "{at} {value}");
        }
        for len in 0..good.len() {
            assert!(FromDevice::parse(&good[..len]).is_err(), "{len}");
        }
        let table = [0; 4];
        let answer = padded(message(RESOLUTION_RESPONSE, &[&[0; EDID], &[200, 1, 0], &table]));
        assert!(FromDevice::parse(&answer).is_err());
    }
}
