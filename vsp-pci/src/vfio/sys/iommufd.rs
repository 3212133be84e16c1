//! Requests to an iommufd (`/dev/iommu`), `_IO(';', 0x80 + n)` in `include/uapi/linux/iommufd.h`. Of the objects that it can have one is ours: an
//! address space (IOAS), the first that it makes.

use std::io;
use std::mem::size_of;
use std::os::fd::BorrowedFd;

use iommufd_bindings::iommufd::{
    IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_CMD_IOAS_MAP, IOMMUFD_CMD_IOAS_UNMAP,
    IOMMUFD_TYPE, iommu_ioas_alloc, iommu_ioas_iova_ranges, iommu_ioas_map, iommu_ioas_unmap,
    iommu_iova_range, iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};
use vsp::Span;

use super::by_structure;

const fn request(number: u32) -> libc::c_ulong {
    (((IOMMUFD_TYPE as u32) << 8) | number) as libc::c_ulong
}

const ALLOC: libc::c_ulong = request(IOMMUFD_CMD_IOAS_ALLOC);
const IOVA_RANGES: libc::c_ulong = request(IOMMUFD_CMD_IOAS_IOVA_RANGES);
const MAP: libc::c_ulong = request(IOMMUFD_CMD_IOAS_MAP);
const UNMAP: libc::c_ulong = request(IOMMUFD_CMD_IOAS_UNMAP);

/// Numbers among which a predecessor's space is looked for. The kernel counts objects from 1, and the space is made before the function and its page table
/// are.
const FIRST: std::ops::RangeInclusive<u32> = 1..=8;
/// Ranges of addresses that there is room for at first; a machine has two or three.
const RANGES: usize = 16;
/// Most that the kernel may want to tell.
const MOST: usize = 1024;

/// A new address space, which is empty; its number.
pub fn alloc(iommufd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut alloc = iommu_ioas_alloc { size: size_of::<iommu_ioas_alloc>() as u32, ..Default::default() };
    // SAFETY: the request takes this structure.
    unsafe { by_structure(iommufd, ALLOC, &mut alloc) }?;
    Ok(alloc.out_ioas_id)
}

/// The number of the space of a predecessor, who has made one and no more. The kernel says of each object whether it is one.
pub fn find(iommufd: BorrowedFd<'_>) -> io::Result<u32> {
    for id in FIRST {
        match ranges(iommufd, id) {
            Ok(_) => return Ok(id),
            // Nothing, or something else.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Addresses that a space can have mapped, first and last.
pub fn ranges(iommufd: BorrowedFd<'_>, id: u32) -> io::Result<Vec<(u64, u64)>> {
    let mut room = RANGES;
    loop {
        let mut found = vec![iommu_iova_range::default(); room];
        let mut ranges = iommu_ioas_iova_ranges {
            size: size_of::<iommu_ioas_iova_ranges>() as u32,
            ioas_id: id,
            num_iovas: room as u32,
            allowed_iovas: found.as_mut_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the request takes this structure, and writes no more ranges to what it points to, which is alive and ours alone, than there is room for.
        let result = unsafe { by_structure(iommufd, IOVA_RANGES, &mut ranges) };
        let count = ranges.num_iovas as usize;
        match result {
            Ok(_) => {
                return Ok(found.iter().take(count).map(|range| (range.start, range.last)).collect());
            }
            // It says how many there are.
            Err(error)
                if error.raw_os_error() == Some(libc::EMSGSIZE) && (room + 1..=MOST).contains(&count) =>
            {
                room = count;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Has this memory behind this address of a space.
pub fn map(iommufd: BorrowedFd<'_>, id: u32, address: u64, memory: Span) -> io::Result<()> {
    let mut map = iommu_ioas_map {
        size: size_of::<iommu_ioas_map>() as u32,
        flags: FIXED_IOVA | READABLE | WRITEABLE,
        ioas_id: id,
        user_va: memory.address().as_ptr() as u64,
        length: memory.len() as u64,
        iova: address,
        ..Default::default()
    };
    // SAFETY: the request takes this structure. The pages that it points to are the guest's RAM: the kernel holds them itself
    // from now on, and nothing of ours is ever a reference to them.
    unsafe { by_structure(iommufd, MAP, &mut map) }.map(drop)
}

/// A piece, or everything.
pub fn unmap(iommufd: BorrowedFd<'_>, id: u32, piece: Option<(u64, u64)>) -> io::Result<()> {
    // These two mean everything, also if that is nothing.
    let (iova, length) = piece.unwrap_or((0, u64::MAX));
    let size = size_of::<iommu_ioas_unmap>() as u32;
    let mut unmap = iommu_ioas_unmap { size, ioas_id: id, iova, length };
    // SAFETY: the request takes this structure.
    unsafe { by_structure(iommufd, UNMAP, &mut unmap) }.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn requests_have_the_kernels_numbers() {
        assert_eq!((ALLOC, IOVA_RANGES, MAP, UNMAP), (0x3b81, 0x3b84, 0x3b85, 0x3b86));
    }

    #[test]
    fn a_file_that_is_no_iommufd_has_no_space() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(find(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
