//! fio with io_uring, on the file itself.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Cache, Measured, Work};
use crate::sh;

/// Runs it.
pub fn measure(path: &Path, cache: Cache, work: &Work, time: Duration) -> Result<Measured> {
    let (order, direct) = (if work.random { "randread" } else { "read" }, u8::from(cache == Cache::Direct));
    let output = sh::output(
        // Without `invalidate=0` it would drop the file from the page cache first.
        Command::new("fio")
            .args(["--name=bench", "--ioengine=io_uring", "--readonly", "--invalidate=0", "--time_based"])
            .args(["--norandommap", "--lat_percentiles=1", "--percentile_list=50", "--output-format=json"])
            .arg(format!("--filename={}", path.display()))
            .arg(format!("--rw={order}"))
            .arg(format!("--bs={}", work.block))
            .arg(format!("--iodepth={}", work.depth))
            .arg(format!("--direct={direct}"))
            .arg(format!("--runtime={}ms", time.as_millis())),
    )?;
    parse(&output).context("fio's answer")
}

fn parse(output: &str) -> Result<Measured> {
    // It may say something before.
    let json: Value = serde_json::from_str(&output[output.find('{').context("no JSON")?..])?;
    let read = &json["jobs"][0]["read"];
    let number = |value: &Value, what: &'static str| value.as_f64().context(what);
    Ok(Measured {
        per_second: number(&read["iops"], "no iops")?,
        p50: number(&read["lat_ns"]["percentile"]["50.000000"], "no median")? / 1000.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_understood() {
        let output = "note: something\n{\"jobs\": [{\"read\": {\"iops\": 812345.5, \
            \"lat_ns\": {\"percentile\": {\"50.000000\": 1240}}}}]}";
        assert_eq!(parse(output).unwrap(), Measured { per_second: 812_345.5, p50: 1.24 });
        assert!(parse("{\"jobs\": []}").is_err());
        assert!(parse("").is_err());
    }
}
