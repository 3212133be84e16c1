//! What a HID device's reports look like, read from its report descriptor ("Device Class Definition for HID 1.11",
//! chapters 5.4 to 6.2.2), as far as a pointing device goes.

/// Generic Desktop.
const DESKTOP: u16 = 1;
/// Button.
const BUTTON: u16 = 9;
/// Consumer.
const CONSUMER: u16 = 12;
/// Most bits of a field that anything is done with.
const WIDEST: u32 = 32;
/// Most fields.
const FIELDS: u32 = 64;

/// A value in a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Usage page and usage.
    pub usage: (u16, u16),
    /// Where it begins.
    pub bit: u32,
    /// How long it is.
    pub bits: u32,
    /// Smallest and largest value.
    pub range: (i32, i32),
    /// It is a difference.
    pub relative: bool,
}

/// The fields of the only report.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    /// Their number comes first, if they have one.
    pub number: Option<u8>,
    /// The fields, without those that say nothing.
    pub fields: Vec<Field>,
    bits: u32,
}

/// A report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Where the pointer is: 0 to 32767 is left to right.
    pub x: i32,
    /// Top to bottom.
    pub y: i32,
    /// Buttons that are pressed: bit 0 is the first.
    pub buttons: u32,
    /// Steps of the wheel: up is positive.
    pub wheel: i32,
    /// Steps of the wheel that goes sideways: right is positive.
    pub pan: i32,
}

#[derive(Debug, Clone, Default)]
struct Globals {
    page: u16,
    minimum: i32,
    maximum: i32,
    size: u32,
    count: u32,
}

impl Layout {
    /// Reads a report descriptor: short items only, one report, everything in collections.
    pub fn parse(mut descriptor: &[u8]) -> Option<Self> {
        let (mut layout, mut globals, mut usages, mut depth) =
            (Self::default(), Globals::default(), Vec::new(), 0u32);
        let mut lowest: Option<u16> = None;
        while let [prefix, rest @ ..] = descriptor {
            let len = [0, 1, 2, 4][usize::from(prefix & 3)];
            let (value, rest) = rest.split_at_checked(len)?;
            descriptor = rest;
            let mut wide = [0; 4];
            wide[..len].copy_from_slice(value);
            let unsigned = u32::from_le_bytes(wide);
            let shift = 32 - 8 * len as u32;
            let signed = if len == 0 { 0 } else { ((unsigned << shift) as i32) >> shift };
            match prefix & 0xfc {
                0x04 => globals.page = unsigned as u16,
                0x14 => globals.minimum = signed,
                0x24 => globals.maximum = signed,
                // Physical range, exponent and unit say nothing about where a value is.
                0x34 | 0x44 | 0x54 | 0x64 => {}
                0x74 => globals.size = unsigned,
                0x84 => match layout.number.replace(unsigned as u8) {
                    None if layout.bits == 0 => layout.bits = 8,
                    _ => return None,
                },
                0x94 => globals.count = unsigned,
                0x08 => usages.push(unsigned as u16),
                0x18 => lowest = Some(unsigned as u16),
                0x28 => usages.extend((lowest?..=unsigned as u16).take(FIELDS as usize)),
                // Input.
                0x80 => {
                    layout.input(&globals, &usages, unsigned)?;
                    usages.clear();
                }
                // Collection, and its end.
                0xa0 => {
                    depth += 1;
                    usages.clear();
                }
                0xc0 => depth = depth.checked_sub(1)?,
                _ => return None,
            }
        }
        (depth == 0 && layout.bits % 8 == 0 && !layout.fields.is_empty()).then_some(layout)
    }

    fn input(&mut self, globals: &Globals, usages: &[u16], flags: u32) -> Option<()> {
        let (constant, variable, relative) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        if globals.size == 0 || globals.size > WIDEST || globals.count == 0 || globals.count > FIELDS {
            return None;
        }
        for n in 0..globals.count {
            if !constant {
                let usage = *usages.get(n as usize).or(usages.last())?;
                if !variable || globals.minimum >= globals.maximum {
                    return None;
                }
                self.fields.push(Field {
                    usage: (globals.page, usage),
                    bit: self.bits,
                    bits: globals.size,
                    range: (globals.minimum, globals.maximum),
                    relative,
                });
            }
            self.bits += globals.size;
        }
        (self.bits <= 8 * 64).then_some(())
    }

    /// Bytes of a report.
    pub fn bytes(&self) -> usize {
        self.bits as usize / 8
    }

    /// The field with this usage.
    pub fn field(&self, page: u16, usage: u16) -> Option<&Field> {
        self.fields.iter().find(|field| field.usage == (page, usage))
    }

    /// Buttons.
    pub fn buttons(&self) -> usize {
        self.fields.iter().filter(|field| field.usage.0 == BUTTON).count()
    }

    /// Where the pointer may be, if that is where and not by how much: the ranges of x and y.
    pub fn area(&self) -> Option<[(i32, i32); 2]> {
        let axis =
            |usage| self.field(DESKTOP, usage).filter(|field| !field.relative).map(|field| field.range);
        Some([axis(0x30)?, axis(0x31)?])
    }

    /// Reads a report. `None` if it is not one of these: a wrong length or number, or a value outside its range.
    pub fn read(&self, report: &[u8]) -> Option<Report> {
        if report.len() != self.bytes() || self.number.is_some_and(|number| report.first() != Some(&number)) {
            return None;
        }
        let mut read = Report::default();
        for field in &self.fields {
            let value = field.value(report);
            if value < field.range.0 || value > field.range.1 {
                return None;
            }
            match field.usage {
                (DESKTOP, 0x30) => read.x = value,
                (DESKTOP, 0x31) => read.y = value,
                (DESKTOP, 0x38) => read.wheel = value,
                (CONSUMER, 0x238) => read.pan = value,
                (BUTTON, n @ 1..=32) => read.buttons |= u32::from(value != 0) << (n - 1),
                _ => {}
            }
        }
        Some(read)
    }
}

impl Field {
    fn value(&self, report: &[u8]) -> i32 {
        let bit = |n: u32| u32::from(report[(n / 8) as usize] >> (n % 8) & 1);
        let raw = (0..self.bits).fold(0, |raw, n| raw | bit(self.bit + n) << n);
        let shift = 32 - self.bits;
        if self.range.0 < 0 { ((raw << shift) as i32) >> shift } else { raw as i32 }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Five buttons, absolute x and y, a wheel.
    pub const POINTER: &[u8] = &[
        0x05, 1, 0x09, 2, 0xa1, 1, 0x09, 1, 0xa1, 0, 0x05, 9, 0x19, 1, 0x29, 5, 0x15, 0, 0x25, 1, 0x75, 1,
        0x95, 5, 0x81, 2, 0x75, 3, 0x95, 1, 0x81, 3, 0x05, 1, 0x09, 0x30, 0x09, 0x31, 0x15, 0, 0x26, 0xff,
        0x7f, 0x75, 16, 0x95, 2, 0x81, 2, 0x09, 0x38, 0x15, 0x81, 0x25, 0x7f, 0x75, 8, 0x95, 1, 0x81, 6,
        0xc0, 0xc0,
    ];

    #[test]
    fn a_descriptor_says_where_values_are() {
        let layout = Layout::parse(POINTER).expect("good");
        assert_eq!((layout.bytes(), layout.buttons(), layout.area()), (6, 5, Some([(0, 32767); 2])));
        let wheel = layout.field(DESKTOP, 0x38).expect("a wheel");
        assert!(wheel.relative && wheel.range == (-127, 127) && wheel.bit == 40);
        let report = layout.read(&[0b1_0001, 0x34, 0x12, 0, 0, 3]).expect("good");
        assert_eq!(report, Report { x: 0x1234, y: 0, buttons: 0x11, wheel: 3, pan: 0 });
        assert_eq!(layout.read(&[0, 0, 0x80, 0, 0, 0]), None, "outside its range");
        assert_eq!(layout.read(&[0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn nonsense_is_no_descriptor() {
        for len in 0..POINTER.len() {
            assert_eq!(Layout::parse(&POINTER[..len]), None, "{len}");
        }
        assert_eq!(Layout::parse(&[0xfe, 0, 0]), None, "a long item");
        assert_eq!(Layout::parse(&[0xa1, 1, 0x75, 0, 0x95, 1, 0x81, 2, 0xc0]), None, "no bits");
    }
}
