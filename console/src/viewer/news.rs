//! What a viewer is told: when, and in what order.

use super::{Room, Viewer};
use crate::damage::Damage;
use crate::rfb::encodings::Encodings;
use crate::rfb::reply;

impl Viewer {
    /// Begins an update if the viewer waits for one and there is something to say.
    pub(super) fn compose(&mut self, room: &Room<'_>) {
        if !room.fresh || !self.waits() || !self.sender.is_idle() {
            return;
        }
        let Some(clip) = self.request else { return };
        if let Some(format) = self.next_format.take() {
            self.encoder.set_format(format);
        }
        let mut head = Vec::new();
        let mut rectangles = self.put_asides(room, &mut head);
        let mut pieces = Vec::new();
        if self.size != room.picture.size() && self.encodings.can_resize() {
            self.size = room.picture.size();
            self.damage = Damage::new(self.size.0, self.size.1);
            self.damage.add_all();
            if !self.encodings.extended_desktop_size {
                reply::desktop_size(self.size, &mut head);
                rectangles += 1;
            }
        } else {
            if let Some(refresh) = self.refresh.take() {
                self.damage.add(refresh);
            }
            let mut rects = Vec::new();
            self.damage.take(clip, &mut rects);
            for rect in rects {
                let (width, height) = room.picture.size();
                let inside = rect.x2 <= width && rect.y2 <= height;
                self.encoder.cut(rect, self.encodings.pixels, inside, &mut pieces);
            }
        }
        if rectangles == 0 && pieces.is_empty() {
            return;
        }
        // There are at most some thousands (`Damage`).
        reply::update(rectangles + pieces.len() as u16, self.sender.out());
        self.sender.out().append(&mut head);
        self.sender.begin(self.encodings.pixels, pieces, room.picture.size());
        self.request = None;
    }

    /// Rectangles that are no pixels; how many.
    fn put_asides(&mut self, room: &Room<'_>, head: &mut Vec<u8>) -> u16 {
        let mut count = 0;
        let Encodings { extended_desktop_size, cursor, cursor_with_alpha, qemu_key, led_state, .. } =
            self.encodings;
        if extended_desktop_size {
            let size = room.picture.size();
            if !self.told.screens || self.size != size {
                reply::extended_desktop_size(size, reply::Reason::Server, head);
                self.told.screens = true;
                count += 1;
            }
            if std::mem::take(&mut self.told.owes_refusal) {
                reply::extended_desktop_size(size, reply::Reason::Refused, head);
                count += 1;
            }
        }
        let pointer = room.pointer;
        if (cursor || cursor_with_alpha)
            && pointer.shape.is_some()
            && self.told.pointer != Some(pointer.version)
        {
            let shape = pointer.shape.as_ref().filter(|_| pointer.visible);
            if cursor_with_alpha {
                reply::cursor_with_alpha(shape, head);
            } else {
                reply::cursor(shape, self.encoder.translator(), head);
            }
            self.told.pointer = Some(pointer.version);
            count += 1;
        }
        if qemu_key && !std::mem::replace(&mut self.told.qemu_key, true) {
            reply::qemu_key(head);
            count += 1;
        }
        let leds = room.keyboard.leds();
        if led_state && self.told.leds != Some(leds) {
            reply::led_state(leds, head);
            self.told.leds = Some(leds);
            count += 1;
        }
        count
    }
}
