//! Requests to the kernel's VFIO. Their numbers are `_IO(';', 100 + n)` in `include/uapi/linux/vfio.h`, whatever they take. `iommufd` has those to its
//! sibling.

pub mod iommufd;

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IRQ_INFO_EVENTFD,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, VFIO_TYPE, VFIO_TYPE1v2_IOMMU,
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_info, vfio_group_status,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info, vfio_irq_info,
    vfio_region_info,
};
use vsp::Span;

const fn request(number: u32) -> libc::c_ulong {
    (((VFIO_TYPE as u32) << 8) | (VFIO_BASE + number)) as libc::c_ulong
}

const CHECK_EXTENSION: libc::c_ulong = request(1);
const SET_IOMMU: libc::c_ulong = request(2);
const GROUP_GET_STATUS: libc::c_ulong = request(3);
const GROUP_SET_CONTAINER: libc::c_ulong = request(4);
const GROUP_GET_DEVICE_FD: libc::c_ulong = request(6);
const DEVICE_GET_INFO: libc::c_ulong = request(7);
const DEVICE_GET_REGION_INFO: libc::c_ulong = request(8);
const DEVICE_GET_IRQ_INFO: libc::c_ulong = request(9);
const DEVICE_SET_IRQS: libc::c_ulong = request(10);
const DEVICE_RESET: libc::c_ulong = request(11);
const IOMMU_GET_INFO: libc::c_ulong = request(12);
const IOMMU_MAP_DMA: libc::c_ulong = request(13);
const IOMMU_UNMAP_DMA: libc::c_ulong = request(14);
const DEVICE_BIND_IOMMUFD: libc::c_ulong = request(18);
const DEVICE_ATTACH_IOMMUFD_PT: libc::c_ulong = request(19);

/// `VFIO_DMA_UNMAP_FLAG_ALL`, since Linux 5.12: whatever is mapped.
const UNMAP_ALL: u32 = 1 << 1;

/// Most bytes that the kernel may want to say of a region or of an IOMMU.
const MOST: usize = 64 << 10;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A request that takes a number.
fn by_value(fd: BorrowedFd<'_>, request: libc::c_ulong, value: libc::c_ulong) -> io::Result<libc::c_int> {
    // SAFETY: the requests that come here take no pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, value) })
}

/// A request that takes a structure, which begins with its own length.
///
/// # Safety
/// The request takes a pointer to a `T`, and what that points to, if anything, is there for what the request does with it.
unsafe fn by_structure<T>(
    fd: BorrowedFd<'_>,
    request: libc::c_ulong,
    structure: &mut T,
) -> io::Result<libc::c_int> {
    // SAFETY: the caller's word; the structure is alive, and ours alone.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, structure as *mut T) })
}

/// A request that takes a structure and what follows it, both in `words`, the first of which begins with the length in bytes.
///
/// # Safety
/// The request takes a pointer to a structure that is no longer than its own first field says, and nothing in it points anywhere else.
unsafe fn by_words(fd: BorrowedFd<'_>, request: libc::c_ulong, words: &mut [u64]) -> io::Result<libc::c_int> {
    let len = words.len() * 8;
    debug_assert!(words.first().is_some_and(|first| (*first & 0xffff_ffff) as usize <= len));
    // SAFETY: the caller's word; the kernel goes by the length in the first field, which is no more than there is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request as _, words.as_mut_ptr()) })
}

pub fn speaks_type1v2(container: BorrowedFd<'_>) -> bool {
    by_value(container, CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU.into()).is_ok_and(|answer| answer > 0)
}

pub fn set_iommu(container: BorrowedFd<'_>) -> io::Result<()> {
    by_value(container, SET_IOMMU, VFIO_TYPE1v2_IOMMU.into()).map(drop)
}

pub fn is_viable(group: BorrowedFd<'_>) -> io::Result<bool> {
    let mut status = vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, flags: 0 };
    // SAFETY: the request takes this structure.
    unsafe { by_structure(group, GROUP_GET_STATUS, &mut status) }?;
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

pub fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> io::Result<()> {
    let mut number: i32 = container.as_raw_fd();
    // SAFETY: the request takes a pointer to an int.
    unsafe { by_structure(group, GROUP_SET_CONTAINER, &mut number) }.map(drop)
}

pub fn device(group: BorrowedFd<'_>, address: &str) -> io::Result<OwnedFd> {
    let name = CString::new(address).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the request takes a string that ends with a zero, and only reads it.
    let number = check(unsafe { libc::ioctl(group.as_raw_fd(), GROUP_GET_DEVICE_FD as _, name.as_ptr()) })?;
    // SAFETY: the kernel has just made it for us.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: numbers only.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    Ok(fd)
}

/// Opens the function behind its own node, with its DMA in the hands of an iommufd. Until then the node's file can do nothing.
pub fn bind(device: BorrowedFd<'_>, iommufd: BorrowedFd<'_>) -> io::Result<()> {
    let argsz = size_of::<vfio_device_bind_iommufd>() as u32;
    let mut bind = vfio_device_bind_iommufd { argsz, iommufd: iommufd.as_raw_fd(), ..Default::default() };
    // SAFETY: the request takes this structure; the pointer in it is unused without the flag for it.
    unsafe { by_structure(device, DEVICE_BIND_IOMMUFD, &mut bind) }.map(drop)
}

/// Has an address space of its iommufd translate for the function.
pub fn attach(device: BorrowedFd<'_>, space: u32) -> io::Result<()> {
    let argsz = size_of::<vfio_device_attach_iommufd_pt>() as u32;
    let mut attach = vfio_device_attach_iommufd_pt { argsz, pt_id: space, ..Default::default() };
    // SAFETY: the request takes this structure.
    unsafe { by_structure(device, DEVICE_ATTACH_IOMMUFD_PT, &mut attach) }.map(drop)
}

pub fn device_info(device: BorrowedFd<'_>) -> io::Result<vfio_device_info> {
    let mut info = vfio_device_info { argsz: size_of::<vfio_device_info>() as u32, ..Default::default() };
    // SAFETY: the request takes this structure.
    unsafe { by_structure(device, DEVICE_GET_INFO, &mut info) }?;
    Ok(info)
}

/// What the kernel says of a region.
#[derive(Debug)]
pub struct FoundRegion {
    pub size: u64,
    pub offset: u64,
    pub is_readable: bool,
    pub is_writable: bool,
    pub mappable: Vec<(u64, u64)>,
}

pub fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<FoundRegion> {
    let mut words = vec![0u64; size_of::<vfio_region_info>() / 8];
    let answer = |words: &mut Vec<u64>| {
        (words[0], words[1]) = ((words.len() * 8) as u64, index.into());
        // SAFETY: the request takes a `vfio_region_info`, with as much behind it as its first field says.
        unsafe { by_words(device, DEVICE_GET_REGION_INFO, words) }
    };
    match answer(&mut words) {
        // A function has no region of this number.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        result => _ = result?,
    }
    grow(&mut words, answer)?;
    let (flags, cap_offset) = ((words[0] >> 32) as u32, (words[1] >> 32) as u32);
    let (size, offset) = (words[2], words[3]);
    let mut mappable = Vec::new();
    if flags & VFIO_REGION_INFO_FLAG_MMAP != 0 {
        let caps = flags & VFIO_REGION_INFO_FLAG_CAPS != 0;
        let sparse = caps.then(|| capability(&words, cap_offset, VFIO_REGION_INFO_CAP_SPARSE_MMAP)).flatten();
        // A capability is a header of 8 bytes, a number of areas, and 4 bytes of nothing; then the areas.
        mappable = match sparse {
            Some(areas) => pairs(&areas).filter(|(at, len)| within(*at, *len, size)).collect(),
            None => vec![(0, size)],
        };
    }
    let is = |flag| flags & flag != 0;
    let (is_readable, is_writable) = (is(VFIO_REGION_INFO_FLAG_READ), is(VFIO_REGION_INFO_FLAG_WRITE));
    Ok(FoundRegion { size, offset, is_readable, is_writable, mappable })
}

fn within(at: u64, len: u64, size: u64) -> bool {
    at.checked_add(len).is_some_and(|end| end <= size)
}

/// Asks again with more room, if the kernel has more to say.
fn grow(words: &mut Vec<u64>, ask: impl Fn(&mut Vec<u64>) -> io::Result<libc::c_int>) -> io::Result<()> {
    let wanted = (words[0] & 0xffff_ffff) as usize;
    if wanted > words.len() * 8 && wanted <= MOST {
        words.resize(wanted.div_ceil(8), 0);
        ask(words)?;
    }
    Ok(())
}

/// The words of a capability behind a structure, without its header and the word that counts what is in it.
fn capability(words: &[u64], offset: u32, wanted: u32) -> Option<Vec<u64>> {
    let mut at = offset as usize;
    // The chain is the kernel's; no more than there is room for.
    for _ in 0..words.len() {
        if at == 0 || !at.is_multiple_of(8) {
            return None;
        }
        let rest = words.get(at / 8..)?;
        let header = *rest.first()?;
        if (header & 0xffff) as u32 == wanted {
            let count = (*rest.get(1)? & 0xffff_ffff) as usize;
            return Some(rest.get(2..)?.iter().copied().take(count * 2).collect());
        }
        at = (header >> 32) as usize;
    }
    None
}

fn pairs(words: &[u64]) -> impl Iterator<Item = (u64, u64)> + '_ {
    words.chunks_exact(2).map(|pair| (pair[0], pair[1]))
}

pub fn irq_count(device: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    let argsz = size_of::<vfio_irq_info>() as u32;
    let mut info = vfio_irq_info { argsz, index, ..Default::default() };
    // SAFETY: the request takes this structure.
    unsafe { by_structure(device, DEVICE_GET_IRQ_INFO, &mut info) }?;
    Ok(if info.flags & VFIO_IRQ_INFO_EVENTFD != 0 { info.count } else { 0 })
}

/// A `vfio_irq_set` with descriptors behind it, as the kernel takes it.
fn irq_set(flags: u32, index: u32, start: u32, bells: &[Option<BorrowedFd<'_>>]) -> Vec<u64> {
    let numbers = bells.iter().map(|bell| bell.map_or(-1, |bell| bell.as_raw_fd()) as u32);
    let len = 20 + 4 * bells.len() as u32;
    let all: Vec<u32> = [len, flags, index, start, bells.len() as u32].into_iter().chain(numbers).collect();
    all.chunks(2).map(|pair| u64::from(pair[0]) | u64::from(*pair.get(1).unwrap_or(&0)) << 32).collect()
}

pub fn set_triggers(
    device: BorrowedFd<'_>,
    index: u32,
    start: u32,
    bells: &[Option<BorrowedFd<'_>>],
) -> io::Result<()> {
    let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
    let mut set = irq_set(flags, index, start, bells);
    // SAFETY: the request takes a `vfio_irq_set`, with as much behind it as its first field says.
    match unsafe { by_words(device, DEVICE_SET_IRQS, &mut set) }? {
        0 => Ok(()),
        // So many vectors the host has left.
        left => Err(io::Error::other(format!("the host has no more than {left} vectors left"))),
    }
}

pub fn disable(device: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut set = irq_set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, &[]);
    // SAFETY: the request takes a `vfio_irq_set`.
    unsafe { by_words(device, DEVICE_SET_IRQS, &mut set) }.map(drop)
}

pub fn reset(device: BorrowedFd<'_>) -> io::Result<()> {
    by_value(device, DEVICE_RESET, 0).map(drop)
}

pub fn dma_ranges(container: BorrowedFd<'_>) -> io::Result<Vec<(u64, u64)>> {
    let mut words = vec![0u64; size_of::<vfio_iommu_type1_info>() / 8];
    let ask = |words: &mut Vec<u64>| {
        words[0] = (words.len() * 8) as u64;
        // SAFETY: the request takes a `vfio_iommu_type1_info`, with as much behind it as its first field says.
        unsafe { by_words(container, IOMMU_GET_INFO, words) }
    };
    ask(&mut words)?;
    grow(&mut words, ask)?;
    if (words[0] >> 32) as u32 & VFIO_IOMMU_INFO_CAPS == 0 {
        return Ok(Vec::new());
    }
    let offset = words[2] as u32;
    let ranges = capability(&words, offset, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
    Ok(ranges.map(|ranges| pairs(&ranges).collect()).unwrap_or_default())
}

pub fn map_dma(container: BorrowedFd<'_>, address: u64, memory: Span) -> io::Result<()> {
    let mut map = vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
        flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: memory.address().as_ptr() as u64,
        iova: address,
        size: memory.len() as u64,
    };
    // SAFETY: the request takes this structure. The pages that it points to are the guest's RAM: the kernel holds them itself
    // from now on, and nothing of ours is ever a reference to them.
    unsafe { by_structure(container, IOMMU_MAP_DMA, &mut map) }.map(drop)
}

/// A piece, or everything.
pub fn unmap_dma(container: BorrowedFd<'_>, piece: Option<(u64, u64)>) -> io::Result<()> {
    let argsz = size_of::<vfio_iommu_type1_dma_unmap>() as u32;
    let (iova, size) = piece.unwrap_or((0, 0));
    let flags = if piece.is_none() { UNMAP_ALL } else { 0 };
    let mut unmap = vfio_iommu_type1_dma_unmap { argsz, flags, iova, size, ..Default::default() };
    // SAFETY: the request takes this structure, with nothing behind it.
    unsafe { by_structure(container, IOMMU_UNMAP_DMA, &mut unmap) }.map(drop)
}

pub fn read(file: BorrowedFd<'_>, at: u64, into: &mut [u8]) -> io::Result<()> {
    // SAFETY: the kernel writes no more bytes than there are, into memory that is ours alone.
    let count = unsafe { libc::pread(file.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), at as i64) };
    whole(count, into.len())
}

pub fn write(file: BorrowedFd<'_>, at: u64, from: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel reads no more bytes than there are.
    let count = unsafe { libc::pwrite(file.as_raw_fd(), from.as_ptr().cast(), from.len(), at as i64) };
    whole(count, from.len())
}

fn whole(count: isize, wanted: usize) -> io::Result<()> {
    match usize::try_from(count) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(count) if count == wanted => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!((CHECK_EXTENSION, DEVICE_SET_IRQS, IOMMU_MAP_DMA), (0x3b65, 0x3b6e, 0x3b71));
        assert_eq!((DEVICE_BIND_IOMMUFD, DEVICE_ATTACH_IOMMUFD_PT), (0x3b76, 0x3b77));
    }

    #[test]
    fn descriptors_lie_behind_an_irq_set() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let set = irq_set(0x24, 2, 5, &[None, Some(file.as_fd())]);
        let bytes: Vec<u8> = set.iter().flat_map(|word| word.to_le_bytes()).collect();
        let words: Vec<i32> =
            bytes.chunks(4).map(|word| i32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [28, 0x24, 2, 5, 2, -1, file.as_raw_fd(), 0]);
    }

    #[test]
    fn chains_of_capabilities_end() {
        // A structure of four words; at byte 32 a capability of another kind, at byte 48 one with two areas.
        let words = [0, 0, 0, 0, 3 | 48 << 32, 0, 1, 2, 0, 0x1000, 0x3000, 0x1000];
        let areas = capability(&words, 32, 1).unwrap();
        assert_eq!(pairs(&areas).collect::<Vec<_>>(), [(0, 0x1000), (0x3000, 0x1000)]);
        assert_eq!(capability(&words, 32, 7), None);
        let ring = [3 | 8u64 << 32, 3 | 8u64 << 32, 0];
        assert_eq!(capability(&ring, 8, 1), None);
        assert_eq!(capability(&words, 4096, 1), None);
        assert_eq!(capability(&words, 33, 1), None);
    }
}
