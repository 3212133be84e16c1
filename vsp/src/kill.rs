//! What all kill points have in common, whichever face comes by them: how one is named on a command line, and dying at it.
//!
//! A set of points is an enum of the crate whose stores they lie between; it has an [`Armed`] in a thread's own memory. A build without debug
//! assertions has none of it.

/// `NAME:COUNT`, from 1: a point of `all`, and the how manieth time that it is come by.
pub fn parse<P: Copy>(
    order: &str,
    all: impl IntoIterator<Item = P>,
    name: impl Fn(P) -> &'static str,
) -> Result<(P, u32), String> {
    let (wanted, count) = order.split_once(':').unwrap_or((order, "1"));
    let point = all.into_iter().find(|point| name(*point) == wanted);
    let point = point.ok_or_else(|| format!("there is no kill point `{wanted}`"))?;
    let count = count.parse().ok().filter(|&count: &u32| count > 0);
    let count = count.ok_or_else(|| format!("`{order}` does not end in a number from 1"))?;
    Ok((point, count))
}

/// What is said where there are none.
pub fn none(name: &str, count: u32) -> String {
    format!("this build has no kill points, {name} ({count}) included")
}

#[cfg(debug_assertions)]
pub use armed::{Armed, Death, die};

#[cfg(debug_assertions)]
mod armed {
    use std::cell::Cell;

    /// What happens at a kill point.
    pub type Death<P> = fn(P);

    /// What SIGKILL would leave; a signal handler's note would make a crash of it.
    pub fn die<P>(_: P) {
        std::process::exit(137)
    }

    /// The point that a thread dies at, if it does.
    #[derive(Debug)]
    pub struct Armed<P: Copy>(Cell<Option<(P, u32, Death<P>)>>);

    impl<P: Copy + PartialEq> Armed<P> {
        /// None.
        #[allow(clippy::new_without_default, reason = "it is made in constants only")]
        pub const fn new() -> Armed<P> {
            Armed(Cell::new(None))
        }

        /// Has `death` come when `point` is reached for the `count`th time from now on.
        pub fn arm(&self, point: P, count: u32, death: Death<P>) {
            self.0.set(Some((point, count, death)));
        }

        /// Takes it back; true if it has not come.
        pub fn disarm(&self) -> bool {
            self.0.take().is_some()
        }

        /// The thread is at `point`.
        pub fn reached(&self, point: P) {
            let Some((armed, count, death)) = self.0.get().filter(|armed| armed.0 == point) else { return };
            self.0.set((count > 1).then_some((armed, count - 1, death)));
            if count == 1 {
                death(point);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_name_a_point_and_a_time() {
        let name = |point: u8| if point == 1 { "one" } else { "two" };
        let parsed = |order: &str| parse(order, [1, 2], name);
        assert_eq!((parsed("one"), parsed("two:7")), (Ok((1, 1)), Ok((2, 7))));
        for nonsense in ["three", "one:0", "one:x", "one:"] {
            assert!(parsed(nonsense).is_err(), "{nonsense}");
        }
    }

    #[cfg(debug_assertions)]
    #[test]
    fn death_comes_once_and_at_its_time() {
        thread_local! {
            static DEATHS: std::cell::Cell<u8> = const { std::cell::Cell::new(0) };
        }
        let armed = Armed::new();
        armed.arm(1u8, 2, |point| DEATHS.set(DEATHS.get() + point));
        let deaths = [1, 2, 1, 1, 1].map(|point| {
            armed.reached(point);
            DEATHS.get()
        });
        assert_eq!(deaths, [0, 0, 1, 1, 1]);
        assert!(!armed.disarm());
    }
}
