//! The `[[storage]]` sections of a spec: controllers, their disks, and that no two are called or numbered alike.

use std::collections::HashMap;

use super::files::{self, FoundDisk, Usage};
use super::reader::{Located, Section, Shape};
use super::{Disk, HOMES, LUNS, Loader, MOST_DEVICES, Storage};

const STORAGE: Shape = Shape { title: "[[storage]]", keys: &["name", "spare", "disk"] };
pub(super) const DISK: Shape = Shape {
    title: "[[storage.disk]]",
    keys: &["path", "readonly", "lun", "cache", "block_size", "serial", "iops", "bandwidth", "burst"],
};

impl Loader<'_> {
    /// Every controller; `None` if anything is wrong with one.
    /// `names` gets theirs.
    pub(super) fn storage(
        &mut self,
        top: &Section<'_, '_>,
        names: &mut HashMap<String, usize>,
    ) -> Option<Vec<Storage>> {
        let controllers = top.tables("storage", "[[storage]]", self.report);
        if controllers.len() > MOST_DEVICES {
            let message = format!("{} devices are more than the {MOST_DEVICES} of one VM", controllers.len());
            self.report.error(
                controllers[MOST_DEVICES].1.clone(),
                message,
                "put several disks on one controller",
            );
            return None;
        }
        let mut storage = Some(Vec::new());
        let mut in_use: HashMap<(u64, u64), FoundDisk> = HashMap::new();
        let mut serials: HashMap<String, (String, bool)> = HashMap::new();
        for (number, (table, span)) in controllers.into_iter().enumerate() {
            let section = Section::new(table, &STORAGE, Some(span), &HOMES, self.report);
            let name = self.name(&section, "name", &format!("name = \"disk{number}\""));
            if let Some(name) = &name {
                self.device_name(name, number, "disk", names);
            }
            let spare = section.boolean("spare", false, self.report);
            let disks = self.disks(&section, &mut in_use);
            if let (Some(name), Some(disks)) = (&name, &disks) {
                self.serials(&section, &name.value, disks, &mut serials);
            }
            match (name, disks, &mut storage) {
                (Some(name), Some(disks), Some(all)) => {
                    all.push(Storage { name: name.value, disks, spare });
                }
                _ => storage = None,
            }
        }
        storage
    }

    /// Complains of a name that cannot be, or is taken; `kind` and a number make a better one.
    pub(super) fn device_name(
        &mut self,
        name: &Located<String>,
        number: usize,
        kind: &str,
        names: &mut HashMap<String, usize>,
    ) {
        if name.value == "core" {
            let message = "a device cannot be called \"core\": that is the VM's own process";
            self.report.error(name.span.clone(), message, format!("call it \"{kind}{number}\""));
        }
        if let Some(earlier) = names.insert(name.value.clone(), number) {
            let message = format!("device {} is called \"{}\" already", earlier + 1, name.value);
            let free = (number..).map(|n| format!("{kind}{n}")).find(|name| !names.contains_key(name));
            let fix = format!("give each device a name of its own: \"{}\"", free.unwrap_or_default());
            self.report.error(name.span.clone(), message, fix);
        }
    }

    fn disks(
        &mut self,
        controller: &Section<'_, '_>,
        in_use: &mut HashMap<(u64, u64), FoundDisk>,
    ) -> Option<Vec<Disk>> {
        let tables = controller.tables("disk", "[[storage.disk]]", self.report);
        if tables.is_empty() {
            controller.missing("disk", "[[storage.disk]] with path = \"root.img\"", self.report);
            return None;
        }
        let mut disks = Some(Vec::new());
        let mut luns: HashMap<u64, usize> = HashMap::new();
        for (position, (table, span)) in tables.into_iter().enumerate() {
            let section = Section::new(table, &DISK, Some(span.clone()), &HOMES, self.report);
            let readonly = section.boolean("readonly", false, self.report);
            let path = section.string("path", self.report);
            if path.is_none() {
                section.missing("path", "path = \"root.img\"", self.report);
            }
            let options = self.disk_options(&section);
            let usage = Usage::new(readonly, options.as_ref());
            let found = path.and_then(|path| {
                let path = path.map(|path| self.directory.join(path));
                files::disk(&path, usage, self.host, in_use, self.report).map(|bytes| (path.value, bytes))
            });
            let lun = self.lun(&section, position, span, &mut luns);
            match (found, lun, options, &mut disks) {
                (Some((path, bytes)), Some(lun), Some(options), Some(all)) => {
                    all.push(Disk { path, bytes, readonly, lun, options });
                }
                _ => disks = None,
            }
        }
        disks
    }

    /// Two disks that are called the same are one to a guest that looks for paths to a disk (multipath), and it may write
    /// to either.
    fn serials(
        &mut self,
        section: &Section<'_, '_>,
        device: &str,
        disks: &[Disk],
        serials: &mut HashMap<String, (String, bool)>,
    ) {
        for disk in disks {
            // What `vsp-storage` makes up where none is given.
            let made_up = || format!("{device}-{}", disk.lun);
            let (serial, given) =
                disk.options.serial.clone().map_or_else(|| (made_up(), false), |serial| (serial, true));
            let this = format!("LUN {} of {device}", disk.lun);
            // Two that are made up are the same only where the names of the devices are, which is another mistake.
            if let Some((other, other_given)) = serials.insert(serial.clone(), (this.clone(), given))
                && (given || other_given)
            {
                let message = format!("the serial number {serial} of {this} is that of {other} already");
                let fix = "give each disk a `serial` of its own, or none";
                self.report.error(section.span.clone(), message, fix);
            }
        }
    }

    fn lun(
        &mut self,
        section: &Section<'_, '_>,
        position: usize,
        place: std::ops::Range<usize>,
        luns: &mut HashMap<u64, usize>,
    ) -> Option<u8> {
        let given = section.integer("lun", LUNS, self.report);
        let lun = match &given {
            Some(lun) => lun.value,
            None => position as u64,
        };
        let span = given.map_or(place, |lun| lun.span);
        if !LUNS.contains(&lun) {
            let message = format!("a controller has {} LUNs at most", LUNS.end() + 1);
            self.report.error(span, message, "put this disk on another [[storage]]");
            return None;
        }
        if let Some(earlier) = luns.insert(lun, position) {
            let free = LUNS.into_iter().find(|lun| !luns.contains_key(lun)).unwrap_or_default();
            let message = format!("LUN {lun} is taken by disk {} of this controller", earlier + 1);
            self.report.error(span, message, format!("write lun = {free}"));
            return None;
        }
        u8::try_from(lun).ok()
    }
}
