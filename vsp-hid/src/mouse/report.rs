//! A report of the mouse, and the descriptor that tells the guest what is in it (HID 1.11, 6.2.2; usages of HID Usage Tables 1.12).

/// Bytes of a report.
pub const LEN: usize = 7;

/// Most that a wheel can be turned in one report.
pub const MAX_NOTCHES: i8 = 127;

/// What is in a report: five buttons, two coordinates of 0 to 32767, two wheels.
///
/// Linux' driver changes byte 14 of every descriptor from 0x25 to 0x29 (`mousevsc_probe`, "workaround SA-167"): this one has 0x29 there.
pub const DESCRIPTOR: [u8; 74] = [
    0x05, 0x01, // Usage Page (Generic Desktop)
    0x09, 0x02, // Usage (Mouse)
    0xa1, 0x01, // Collection (Application)
    0x09, 0x01, //   Usage (Pointer)
    0xa1, 0x00, //   Collection (Physical)
    0x05, 0x09, //     Usage Page (Button)
    0x19, 0x01, //     Usage Minimum (1)
    0x29, 0x05, //     Usage Maximum (5)
    0x15, 0x00, //     Logical Minimum (0)
    0x25, 0x01, //     Logical Maximum (1)
    0x95, 0x05, //     Report Count (5)
    0x75, 0x01, //     Report Size (1)
    0x81, 0x02, //     Input (Data, Variable, Absolute)
    0x95, 0x01, //     Report Count (1)
    0x75, 0x03, //     Report Size (3)
    0x81, 0x03, //     Input (Constant): padding
    0x05, 0x01, //     Usage Page (Generic Desktop)
    0x09, 0x30, //     Usage (X)
    0x09, 0x31, //     Usage (Y)
    0x15, 0x00, //     Logical Minimum (0)
    0x26, 0xff, 0x7f, //     Logical Maximum (32767)
    0x95, 0x02, //     Report Count (2)
    0x75, 0x10, //     Report Size (16)
    0x81, 0x02, //     Input (Data, Variable, Absolute)
    0x09, 0x38, //     Usage (Wheel)
    0x15, 0x81, //     Logical Minimum (-127)
    0x25, 0x7f, //     Logical Maximum (127)
    0x95, 0x01, //     Report Count (1)
    0x75, 0x08, //     Report Size (8)
    0x81, 0x06, //     Input (Data, Variable, Relative)
    0x05, 0x0c, //     Usage Page (Consumer)
    0x0a, 0x38, 0x02, //     Usage (AC Pan)
    0x95, 0x01, //     Report Count (1)
    0x75, 0x08, //     Report Size (8)
    0x81, 0x06, //     Input (Data, Variable, Relative)
    0xc0, //   End Collection
    0xc0, // End Collection
];

/// What the mouse is and does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// A bit for each button that is down, the lowest for the first: left, right, middle, then those at the side.
    pub buttons: u8,
    /// From the left edge.
    pub x: u16,
    /// From the upper edge.
    pub y: u16,
    /// Notches of the wheel away from the hand.
    pub wheel: i8,
    /// Notches of the other wheel to the right.
    pub pan: i8,
}

impl Report {
    /// As it goes to the guest.
    pub fn to_bytes(self) -> [u8; LEN] {
        let ([x0, x1], [y0, y1]) = (self.x.to_le_bytes(), self.y.to_le_bytes());
        [self.buttons, x0, x1, y0, y1, self.wheel as u8, self.pan as u8]
    }

    /// The same back.
    pub fn of_bytes([buttons, x0, x1, y0, y1, wheel, pan]: [u8; LEN]) -> Report {
        let (x, y) = (u16::from_le_bytes([x0, x1]), u16::from_le_bytes([y0, y1]));
        Report { buttons, x, y, wheel: wheel as i8, pan: pan as i8 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One main item's fields: size in bits, count, usages, logical range, whether relative, whether constant.
    #[derive(Debug, PartialEq)]
    struct Field {
        bits: u32,
        count: u32,
        usages: Vec<u32>,
        range: (i32, i32),
        relative: bool,
        constant: bool,
    }

    /// Enough of a parser for short items (HID 1.11, 6.2.2.2).
    fn fields(mut bytes: &[u8]) -> Vec<Field> {
        let (mut page, mut low, mut high, mut bits, mut count) = (0u32, 0, 0, 0, 0);
        let (mut usages, mut minimum, mut depth) = (Vec::new(), None, 0);
        let mut fields = Vec::new();
        while let Some((&prefix, rest)) = bytes.split_first() {
            let len = [0, 1, 2, 4][usize::from(prefix & 3)];
            let (data, rest) = rest.split_at(len);
            bytes = rest;
            let value = data.iter().rev().fold(0u32, |value, byte| value << 8 | u32::from(*byte));
            let signed = match len {
                1 => i32::from(value as u8 as i8),
                2 => i32::from(value as u16 as i16),
                _ => value as i32,
            };
            match prefix & 0xfc {
                0x04 => page = value << 16,
                0x08 => usages.push(page | value),
                0x18 => minimum = Some(value),
                0x28 => usages.extend((minimum.take().unwrap()..=value).map(|usage| page | usage)),
                0x14 => low = signed,
                0x24 => high = signed,
                0x74 => bits = value,
                0x94 => count = value,
                0xa0 => {
                    depth += 1;
                    usages.clear();
                }
                0xc0 => depth -= 1,
                0x80 => fields.push(Field {
                    bits,
                    count,
                    usages: std::mem::take(&mut usages),
                    range: (low, high),
                    relative: value & 4 != 0,
                    constant: value & 1 != 0,
                }),
                other => panic!("item {other:#x}"),
            }
        }
        assert_eq!(depth, 0);
        fields
    }

    #[test]
    fn the_descriptor_describes_the_report() {
        let fields = fields(&DESCRIPTOR);
        let bits: u32 = fields.iter().map(|field| field.bits * field.count).sum();
        assert_eq!(bits as usize, LEN * 8);
        let shape: Vec<_> = fields.iter().map(|f| (f.bits, f.count, f.relative, f.constant)).collect();
        assert_eq!(
            shape,
            [
                (1, 5, false, false),
                (3, 1, false, true),
                (16, 2, false, false),
                (8, 1, true, false),
                (8, 1, true, false)
            ]
        );
        assert_eq!(fields[0].usages, (0x90001..=0x90005).collect::<Vec<_>>());
        assert_eq!((&fields[2].usages[..], fields[2].range), (&[0x10030, 0x10031][..], (0, 32767)));
        assert_eq!((&fields[3].usages[..], fields[3].range), (&[0x10038][..], (-127, 127)));
        assert_eq!((&fields[4].usages[..], fields[4].range), (&[0xc0238][..], (-127, 127)));
        // Or Linux' driver would change it.
        assert_ne!(DESCRIPTOR[14], 0x25);
    }

    #[test]
    fn a_report_is_where_the_descriptor_says() {
        let report = Report { buttons: 0b10101, x: 0x1234, y: 0x7fff, wheel: -1, pan: 2 };
        assert_eq!(report.to_bytes(), [0x15, 0x34, 0x12, 0xff, 0x7f, 0xff, 2]);
        assert_eq!(Report::of_bytes(report.to_bytes()), report);
    }
}
