//! The keys that one viewer holds.

use std::collections::BTreeMap;

use crate::input::{Holder, Keyboard};
use crate::keysym::{self, Code, Meaning};

/// Most keys at once: more than anybody has fingers.
const MAX: usize = 64;
/// Set in the name of a key that came as such.
const BY_CODE: u32 = 1 << 31;

/// Keys that are held, by what the viewer calls them: a keysym, or the key itself. A key has one name, the last one that it was pressed by.
#[derive(Debug, Default)]
pub(super) struct Keys(BTreeMap<u32, Code>);

impl Keys {
    /// The viewer says that a key went down or up.
    pub fn event(&mut self, who: Holder, keyboard: &mut Keyboard, down: bool, keysym: u32, number: u32) {
        let by_code = Code::of_number(number);
        let meaning = by_code.map(Meaning::Key).or_else(|| keysym::of_keysym(keysym));
        let name = by_code.map_or(keysym & !BY_CODE, |_| number | BY_CODE);
        if down {
            if self.0.len() >= MAX && !self.0.contains_key(&name) {
                return;
            }
            let held = meaning.and_then(|meaning| keyboard.press_meaning(who, meaning));
            if let Some(code) = held {
                // A key that repeats may be called something else by now (Shift came in between), and is let go of once, by either name.
                self.0.retain(|_, other| *other != code);
                // The same name may be another key by now (Num Lock).
                if let Some(before) = self.0.insert(name, code) {
                    keyboard.release(who, before);
                }
            }
            return;
        }
        // Who lets go of Shift first lets go of `a` after having pressed `A`.
        let name = if self.0.contains_key(&name) { Some(name) } else { self.same_key(meaning) };
        if let Some(code) = name.and_then(|name| self.0.remove(&name)) {
            keyboard.release(who, code);
        }
    }

    /// All go up.
    pub fn release_all(&mut self, who: Holder, keyboard: &mut Keyboard) {
        for code in std::mem::take(&mut self.0).into_values() {
            keyboard.release(who, code);
        }
    }

    fn same_key(&self, meaning: Option<Meaning>) -> Option<u32> {
        let codes = match meaning? {
            Meaning::Key(code) | Meaning::Character { code, .. } => [code, code],
            Meaning::Keypad { code, plain, .. } => [code, plain],
            Meaning::Unicode(_) => return None,
        };
        self.0.iter().find(|(_, held)| codes.contains(held)).map(|(name, _)| *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Holder = Holder::TYPIST;

    fn events(of: &[(bool, u32, u32)]) -> Vec<u16> {
        let (mut keys, mut keyboard) = (Keys::default(), Keyboard::new());
        of.iter().for_each(|(down, keysym, code)| keys.event(WHO, &mut keyboard, *down, *keysym, *code));
        keys.release_all(WHO, &mut keyboard);
        told(&mut keyboard)
    }

    fn told(keyboard: &mut Keyboard) -> Vec<u16> {
        let mut all = Vec::new();
        while let Some(seat::keyboard::FromConsole::Key(key)) = keyboard.front() {
            all.push(key.scancode | if key.up { 0x80 } else { 0 });
            keyboard.pop();
        }
        all
    }

    #[test]
    fn a_key_is_let_go_of_under_another_name() {
        let (shift, big, small) = (0xffe1, 0x41, 0x61);
        let typed = events(&[(true, shift, 0), (true, big, 0), (false, shift, 0), (false, small, 0)]);
        assert_eq!(typed, [0x2a, 0x1e, 0xaa, 0x9e]);
    }

    #[test]
    fn a_key_whose_name_changes_while_it_is_held_does_not_stick() {
        let (shift, big, small) = (0xffe1, 0x41, 0x61);
        for last in [big, small] {
            let (mut keys, mut keyboard) = (Keys::default(), Keyboard::new());
            for (down, keysym) in [(true, small), (true, shift), (true, big), (false, last)] {
                keys.event(WHO, &mut keyboard, down, keysym, 0);
            }
            assert_eq!(told(&mut keyboard), [0x1e, 0x2a, 0x1e, 0x9e], "{last:x}");
            keys.event(WHO, &mut keyboard, false, shift, 0);
            assert!(keys.0.is_empty() && told(&mut keyboard) == [0xaa]);
        }
    }

    #[test]
    fn scan_codes_come_before_meanings() {
        assert_eq!(events(&[(true, 0x7a, 0x15), (false, 0x7a, 0x15)]), [0x15, 0x95]);
    }

    #[test]
    fn who_goes_lets_go() {
        assert_eq!(events(&[(true, 0xff0d, 0), (true, 0xff0d, 0), (true, 0x1_0000, 0)]), [0x1c, 0x1c, 0x9c]);
    }

    #[test]
    fn nobody_holds_more_keys_than_there_are_fingers() {
        let many: Vec<_> = (1..0x60).map(|code| (true, 0, code)).collect();
        assert_eq!(events(&many).len(), 2 * MAX);
    }
}
