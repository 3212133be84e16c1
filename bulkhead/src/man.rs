//! The man pages, made from the command line so that they cannot say anything else.

use std::io::{self, Write};
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::cli::Cli;

/// Writes `bulkhead.1` and a page for each command into `directory`.
pub fn write_pages(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (name, page) in pages()? {
        std::fs::write(directory.join(name), page)?;
    }
    Ok(())
}

/// The man pages: file name and text.
pub fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut top = Cli::command();
    top.build();
    let mut commands = Vec::new();
    collect(&top, "", &mut commands);
    let names: Vec<String> = commands.iter().map(|(name, _)| name.clone()).collect();
    let page = |(name, command): &(String, Command)| {
        let family = relatives(name, &names);
        Ok((format!("{name}.1"), page(command.clone(), name, &family)?))
    };
    commands.iter().map(page).collect()
}

/// A command and those below it, each with the name of its page.
fn collect(command: &Command, above: &str, out: &mut Vec<(String, Command)>) {
    let name = if above.is_empty() {
        command.get_name().to_owned()
    } else {
        format!("{above}-{}", command.get_name())
    };
    out.push((name.clone(), command.clone()));
    for below in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        collect(below, &name, out);
    }
}

/// Pages that a reader of `name` may want next: the one above, those beside it, and those below.
fn relatives<'n>(name: &str, names: &'n [String]) -> Vec<&'n str> {
    let parent = name.rsplit_once('-').map(|(parent, _)| parent);
    let is_below = |name: &str, other: &str| {
        other
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|rest| !rest.contains('-'))
    };
    let others = names.iter().map(String::as_str).filter(|other| *other != name);
    others
        .filter(|other| {
            parent == Some(other)
                || is_below(name, other)
                || parent.is_some_and(|parent| is_below(parent, other))
        })
        .collect()
}

fn page(command: Command, name: &str, family: &[&str]) -> io::Result<Vec<u8>> {
    let text =
        |styled: Option<&clap::builder::StyledStr>| styled.map(ToString::to_string).unwrap_or_default();
    let description = text(command.get_long_about());
    let sections = text(command.get_after_help());
    let has_commands = command.get_subcommands().any(|command| !command.is_hide_set());
    // `Command` wants names that live for ever; there are a few of them.
    let command = command.name(name.to_owned().leak() as &'static str);
    let man = Man::new(command)
        .title(name.to_uppercase())
        .source(concat!("Bulkhead ", env!("CARGO_PKG_VERSION")))
        .manual("Bulkhead");

    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    writeln!(out, ".SH DESCRIPTION")?;
    prose(&mut out, description.lines())?;
    man.render_options_section(&mut out)?;
    if has_commands {
        man.render_subcommands_section(&mut out)?;
    }
    // Under the options of a help text stand sections: a title with a colon, and indented lines.
    for section in sections.split("\n\n") {
        let mut lines = section.lines().peekable();
        if let Some(title) = lines.next_if(|line| line.ends_with(':') && !line.starts_with(' ')) {
            writeln!(out, ".SH {:?}", title.trim_end_matches(':').to_uppercase())?;
            prose(&mut out, lines)?;
        } else if section.starts_with(' ') {
            writeln!(out, ".PP")?;
            prose(&mut out, lines)?;
        }
    }
    let others: Vec<String> = family.iter().map(|other| format!("\\fB{}\\fR(1)", escape(other))).collect();
    writeln!(out, ".SH \"SEE ALSO\"\n{}", others.join(", "))?;
    Ok(out)
}

/// Paragraphs as they are; indented lines keep their breaks and columns.
fn prose<'a>(out: &mut Vec<u8>, lines: impl Iterator<Item = &'a str>) -> io::Result<()> {
    let mut as_is = false;
    for line in lines {
        let indented = line.starts_with("  ");
        match (as_is, indented) {
            (false, true) => writeln!(out, ".RS 4\n.nf")?,
            (true, false) => writeln!(out, ".fi\n.RE")?,
            _ => {}
        }
        as_is = indented;
        match line {
            "" => writeln!(out, ".PP")?,
            line => writeln!(out, "{}", escape(line.strip_prefix("  ").unwrap_or(line)))?,
        }
    }
    if as_is {
        writeln!(out, ".fi\n.RE")?;
    }
    Ok(())
}

/// Text that roff shows as it is written.
fn escape(line: &str) -> String {
    let escaped = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if escaped.starts_with('.') { format!("\\&{escaped}") } else { escaped }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_keeps_the_columns_of_indented_lines() {
        let mut out = Vec::new();
        prose(&mut out, "A 'b'.\n  x   -y\n\n.end".lines()).unwrap();
        let expected = "A \\(aqb\\(aq.\n.RS 4\n.nf\nx   \\-y\n.fi\n.RE\n.PP\n\\&.end\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
