//! `docs/writing-a-vsp.md` shows the code as it is.

#[test]
fn the_document_shows_this_code() {
    let code = include_str!("../src/main.rs");
    let document = include_str!("../../docs/writing-a-vsp.md");
    for part in ["program", "device"] {
        let begin = format!("// doc:begin {part}\n");
        let end = format!("// doc:end {part}\n");
        let excerpt = code.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end)).expect(part).0;
        assert!(
            document.contains(excerpt.trim_end()),
            "the part `{part}` of vsp-echo/src/main.rs is not in the document"
        );
    }
}
