//! A guest with a screen and somebody who looks, measured as it is told to: what `cargo xtask bench video` starts. See
//! [`bulkhead_tests::screen::bench`].

#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    bulkhead_tests::screen::bench::serve(std::io::stdin().lock(), std::io::stdout().lock())
}
