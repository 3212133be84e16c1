//! From what a key means (X11's keysyms, characters, names) to the key itself, on a keyboard with the layout of the United
//! States, which is what the guest is thought to have.
//!
//! Scan codes are those of set 1, as a PC keyboard tells them.

/// A key: its make code, and 0x80 for the prefix E0. Pause, which has a prefix of its own, is 0xc6, which no other key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(u8);

impl Code {
    /// The left Shift.
    pub const SHIFT: Code = Code(0x2a);
    /// The right one.
    pub const RIGHT_SHIFT: Code = Code(0x36);
    /// Pause. (E0 46 is what it tells with Ctrl; RFB's extension takes it for the key.)
    pub const PAUSE: Code = Code(0xc6);
    /// The left Ctrl.
    pub const CONTROL: Code = Code(0x1d);
    /// The left Alt.
    pub const ALT: Code = Code(0x38);
    const RIGHT_CONTROL: Code = Code(0x9d);

    /// A key by the number that the extended key event has for it, if there can be such a key.
    pub fn of_number(number: u32) -> Option<Code> {
        let code = u8::try_from(number).ok()?;
        let plain = code & 0x7f;
        // E0 2A and E0 36 are shifts that keyboards make up; 60 and 61 would be read as prefixes.
        (!matches!(code, 0xaa | 0xb6) && !matches!(plain, 0 | 0x60 | 0x61 | 0x7f)).then_some(Code(code))
    }

    /// The make code without a prefix.
    pub fn scancode(self) -> u16 {
        (self.0 & 0x7f).into()
    }

    /// Whether E0 comes first.
    pub fn e0(self) -> bool {
        self.0 & 0x80 != 0
    }

    /// Whether it is one of the keys with which others become something else than characters.
    pub fn is_command(self) -> bool {
        // Ctrl, the left Alt, and those with a flag on them.
        matches!(self, Code::CONTROL | Code::RIGHT_CONTROL | Code::ALT | Code(0xdb | 0xdc))
    }

    /// Whether it is a Shift.
    pub fn is_shift(self) -> bool {
        matches!(self, Code::SHIFT | Code::RIGHT_SHIFT)
    }
}

/// What has to be done for a keysym or a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// This key, whatever else is held.
    Key(Code),
    /// This key with Shift or without, since it means something else otherwise.
    Character {
        /// Which key.
        code: Code,
        /// With Shift.
        shift: bool,
        /// A letter: Caps Lock turns Shift around.
        letter: bool,
    },
    /// A key of the keypad that has two meanings by Num Lock.
    Keypad {
        /// Which key.
        code: Code,
        /// A key outside of the keypad that means the same always.
        plain: Code,
        /// It is the meaning with Num Lock.
        digit: bool,
    },
    /// A character that no key has.
    Unicode(char),
}

/// The keyboard's rows: first make code, characters without Shift, characters with it.
const ROWS: [(u8, &str, &str); 7] = [
    (0x02, "1234567890-=", "!@#$%^&*()_+"),
    (0x10, "qwertyuiop[]", "QWERTYUIOP{}"),
    (0x1e, "asdfghjkl;'", "ASDFGHJKL:\""),
    (0x29, "`", "~"),
    (0x2b, "\\", "|"),
    (0x2c, "zxcvbnm,./", "ZXCVBNM<>?"),
    (0x39, " ", " "),
];

/// What has to be done for a character.
pub fn of_character(character: char) -> Option<Meaning> {
    match character {
        '\n' | '\r' => return Some(Meaning::Key(Code(0x1c))),
        '\t' => return Some(Meaning::Key(Code(0x0f))),
        '\u{8}' => return Some(Meaning::Key(Code(0x0e))),
        '\u{1b}' => return Some(Meaning::Key(Code(0x01))),
        _ if character.is_control() => return None,
        _ => {}
    }
    for (first, plain, shifted) in ROWS {
        for (row, shift) in [(plain, false), (shifted, true)] {
            let Some(column) = row.chars().position(|found| found == character) else { continue };
            let code = Code(first + column as u8);
            if character == ' ' {
                return Some(Meaning::Key(code));
            }
            return Some(Meaning::Character { code, shift, letter: character.is_ascii_alphabetic() });
        }
    }
    Some(Meaning::Unicode(character))
}

/// What has to be done for a keysym (X11's `keysymdef.h`). `None`: nothing, since the guest has no such key.
pub fn of_keysym(keysym: u32) -> Option<Meaning> {
    match keysym {
        0x20..=0x7e | 0xa0..=0xff => of_character(char::from_u32(keysym)?),
        0x0100_0000..=0x0110_ffff => of_character(char::from_u32(keysym - 0x0100_0000)?),
        // The euro has a name of its own.
        0x20ac => Some(Meaning::Unicode('\u{20ac}')),
        0xff95..=0xff9f => {
            let index = (keysym - 0xff95) as usize;
            let keypad = [0x47, 0x4b, 0x48, 0x4d, 0x50, 0x49, 0x51, 0x4f, 0x4c, 0x52, 0x53][index];
            // The one in the middle has no other.
            let plain = if keypad == 0x4c { keypad } else { keypad | 0x80 };
            Some(Meaning::Keypad { code: Code(keypad), plain: Code(plain), digit: false })
        }
        0xffb0..=0xffb9 => {
            let index = (keysym - 0xffb0) as usize;
            let keypad = [0x52, 0x4f, 0x50, 0x51, 0x4b, 0x4c, 0x4d, 0x47, 0x48, 0x49][index];
            let plain = if index == 0 { 0x0b } else { index as u8 + 1 };
            Some(Meaning::Keypad { code: Code(keypad), plain: Code(plain), digit: true })
        }
        0xffac | 0xffae => Some(Meaning::Keypad { code: Code(0x53), plain: Code(0x34), digit: true }),
        // F1 to F10, and F13 to F23, which lie in a row.
        0xffbe..=0xffc7 => Some(Meaning::Key(Code(0x3b + (keysym - 0xffbe) as u8))),
        0xffca..=0xffd4 => Some(Meaning::Key(Code(0x64 + (keysym - 0xffca) as u8))),
        _ => SINGLE.iter().find(|(known, _)| *known == keysym).map(|(_, code)| Meaning::Key(Code(*code))),
    }
}

/// Keysyms that are in no row.
const SINGLE: [(u32, u8); 51] = [
    (0xff08, 0x0e),      // BackSpace
    (0xff09, 0x0f),      // Tab
    (0xfe20, 0x0f),      // ISO_Left_Tab: Tab with Shift
    (0xff0a, 0x1c),      // Linefeed
    (0xff0d, 0x1c),      // Return
    (0xff13, 0xc6),      // Pause
    (0xff6b, 0xc6),      // Break: Pause with Ctrl
    (0xff14, 0x46),      // Scroll_Lock
    (0xff15, 0x54),      // Sys_Req: Print with Alt
    (0xff1b, 0x01),      // Escape
    (0xffff, 0xd3),      // Delete
    (0xff50, 0xc7),      // Home
    (0xff51, 0xcb),      // Left
    (0xff52, 0xc8),      // Up
    (0xff53, 0xcd),      // Right
    (0xff54, 0xd0),      // Down
    (0xff55, 0xc9),      // Page_Up
    (0xff56, 0xd1),      // Page_Down
    (0xff57, 0xcf),      // End
    (0xff61, 0xb7),      // Print
    (0xff63, 0xd2),      // Insert
    (0xff67, 0xdd),      // Menu
    (0xff7f, 0x45),      // Num_Lock
    (0xff80, 0x39),      // KP_Space
    (0xff89, 0x0f),      // KP_Tab
    (0xff8d, 0x9c),      // KP_Enter
    (0xffaa, 0x37),      // KP_Multiply
    (0xffab, 0x4e),      // KP_Add
    (0xffad, 0x4a),      // KP_Subtract
    (0xffaf, 0xb5),      // KP_Divide
    (0xffbd, 0x59),      // KP_Equal
    (0xffc8, 0x57),      // F11
    (0xffc9, 0x58),      // F12
    (0xffd5, 0x76),      // F24
    (0xffe1, 0x2a),      // Shift_L
    (0xffe2, 0x36),      // Shift_R
    (0xffe3, 0x1d),      // Control_L
    (0xffe4, 0x9d),      // Control_R
    (0xffe5, 0x3a),      // Caps_Lock
    (0xffe6, 0x3a),      // Shift_Lock
    (0xffe7, 0xdb),      // Meta_L
    (0xffe8, 0xdc),      // Meta_R
    (0xffe9, 0x38),      // Alt_L
    (0xffea, 0xb8),      // Alt_R
    (0xffeb, 0xdb),      // Super_L
    (0xffec, 0xdc),      // Super_R
    (0xfe03, 0xb8),      // ISO_Level3_Shift: AltGr
    (0xff7e, 0xb8),      // Mode_switch: the same of old
    (0x1008_ff11, 0xae), // XF86AudioLowerVolume
    (0x1008_ff12, 0xa0), // XF86AudioMute
    (0x1008_ff13, 0xb0), // XF86AudioRaiseVolume
];

/// Names of keys for `bulkhead key`, besides characters and f1 to f24.
const NAMES: [(&str, u32); 44] = [
    ("alt", 0xffe9),
    ("altgr", 0xfe03),
    ("backslash", 0x5c),
    ("backspace", 0xff08),
    ("bs", 0xff08),
    ("capslock", 0xffe5),
    ("comma", 0x2c),
    ("control", 0xffe3),
    ("ctrl", 0xffe3),
    ("del", 0xffff),
    ("delete", 0xffff),
    ("dot", 0x2e),
    ("down", 0xff54),
    ("end", 0xff57),
    ("enter", 0xff0d),
    ("equal", 0x3d),
    ("esc", 0xff1b),
    ("escape", 0xff1b),
    ("home", 0xff50),
    ("ins", 0xff63),
    ("insert", 0xff63),
    ("left", 0xff51),
    ("menu", 0xff67),
    ("meta", 0xffeb),
    ("minus", 0x2d),
    ("numlock", 0xff7f),
    ("pagedown", 0xff56),
    ("pageup", 0xff55),
    ("pause", 0xff13),
    ("pgdn", 0xff56),
    ("pgup", 0xff55),
    ("plus", 0x2b),
    ("print", 0xff61),
    ("return", 0xff0d),
    ("right", 0xff53),
    ("scrolllock", 0xff14),
    ("shift", 0xffe1),
    ("slash", 0x2f),
    ("space", 0x20),
    ("super", 0xffeb),
    ("sysrq", 0xff15),
    ("tab", 0xff09),
    ("up", 0xff52),
    ("win", 0xffeb),
];

/// The keys of a name such as `ctrl-alt-del`, in the order in which they are pressed; the part that is no key if there is one.
pub fn of_name(name: &str) -> Result<Vec<Code>, &str> {
    let mut codes = Vec::new();
    for part in name.split(['-', '+']) {
        let part = part.trim();
        let lower = part.to_ascii_lowercase();
        let function = lower.strip_prefix('f').and_then(|number| number.parse::<u32>().ok());
        let keysym = match (part.chars().next(), function) {
            (_, Some(number @ 1..=24)) => Some(0xffbd + number),
            (Some(only), _) if part.chars().count() == 1 => Some(u32::from(only.to_ascii_lowercase())),
            _ => NAMES.iter().find(|(known, _)| *known == lower).map(|(_, keysym)| *keysym),
        };
        match keysym.and_then(of_keysym) {
            Some(Meaning::Character { code, shift: true, .. }) => codes.extend([Code::SHIFT, code]),
            Some(Meaning::Key(code) | Meaning::Character { code, .. } | Meaning::Keypad { code, .. }) => {
                codes.push(code);
            }
            Some(Meaning::Unicode(_)) | None => return Err(part),
        }
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_where_they_are_printed() {
        let character = |code, shift, letter| Some(Meaning::Character { code: Code(code), shift, letter });
        assert_eq!(of_character('a'), character(0x1e, false, true));
        assert_eq!(of_character('A'), character(0x1e, true, true));
        assert_eq!(of_character('@'), character(0x03, true, false));
        assert_eq!(of_character('/'), character(0x35, false, false));
        assert_eq!(of_character(' '), Some(Meaning::Key(Code(0x39))));
        assert_eq!(of_character('\n'), Some(Meaning::Key(Code(0x1c))));
        assert_eq!(of_character('\u{e4}'), Some(Meaning::Unicode('\u{e4}')));
        assert_eq!(of_character('\0'), None);
        let keys: Vec<_> = (' '..='~').filter_map(of_character).collect();
        assert_eq!(keys.len(), 95);
        assert!(keys.iter().all(|meaning| !matches!(meaning, Meaning::Unicode(_))));
    }

    #[test]
    fn keysyms_have_keys() {
        assert_eq!(of_keysym(0xff0d), Some(Meaning::Key(Code(0x1c))));
        assert_eq!(of_keysym(0xffbe), Some(Meaning::Key(Code(0x3b))));
        assert_eq!(of_keysym(0xffc9), Some(Meaning::Key(Code(0x58))));
        assert_eq!(of_keysym(0x0100_0041), of_character('A'));
        assert_eq!(of_keysym(0x0111_0000), None);
        assert_eq!(of_keysym(0x0100_d800), None);
        let one = Meaning::Keypad { code: Code(0x4f), plain: Code(0x02), digit: true };
        assert_eq!(of_keysym(0xffb1), Some(one));
        for (keysym, _) in SINGLE {
            let Some(Meaning::Key(code)) = of_keysym(keysym) else { panic!("{keysym:x}") };
            assert_eq!(Code::of_number(code.0.into()), Some(code), "{keysym:x}");
        }
        assert_eq!(Code::of_number(0), None);
        assert_eq!(Code::of_number(0x100), None);
        assert_eq!(Code::of_number(0xe0), None);
    }

    #[test]
    fn keys_have_names() {
        assert_eq!(of_name("ctrl-alt-del"), Ok(vec![Code(0x1d), Code(0x38), Code(0xd3)]));
        assert_eq!(of_name("F12"), Ok(vec![Code(0x58)]));
        assert_eq!(of_name("f24"), Ok(vec![Code(0x76)]));
        assert_eq!(of_name("Ctrl+C"), Ok(vec![Code(0x1d), Code(0x2e)]));
        assert_eq!(of_name("?"), Ok(vec![Code::SHIFT, Code(0x35)]));
        assert_eq!(of_name("ctrl-hyper"), Err("hyper"));
        assert_eq!(of_name(""), Err(""));
        for (name, _) in NAMES {
            assert!(of_name(name).is_ok(), "{name}");
        }
        for number in 1..=24 {
            assert!(of_name(&format!("f{number}")).is_ok());
        }
    }
}
