//! Pictures of a guest's screen.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A text console that somebody has typed on has more lit pixels than this, and a broken picture (all of one colour) has none.
const LIT: usize = 500;

/// Where the pictures of a scenario stay, for people to look at.
pub fn directory(scenario: &str) -> Result<PathBuf> {
    let directory = crate::build::target_directory().join("pictures").join(scenario);
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}

/// An error unless the PNG file shows something on a dark ground. Returns its size in pixels.
pub fn shows_text(path: &Path) -> Result<(u32, u32)> {
    let file = File::open(path).with_context(|| format!("{}", path.display()))?;
    let mut decoder = png::Decoder::new(BufReader::new(file));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().context("reading a picture")?;
    let mut pixels = vec![0; reader.output_buffer_size().context("the picture is too large")?];
    let info = reader.next_frame(&mut pixels).context("reading a picture")?;
    let lit = pixels.chunks(info.color_type.samples()).filter(|pixel| pixel[0] > 0x40).count();
    let total = usize::try_from(u64::from(info.width) * u64::from(info.height))?;
    ensure!((LIT..total / 2).contains(&lit), "{}: {lit} of {total} pixels are lit", path.display());
    Ok((info.width, info.height))
}
