//! Every link from one page to another leads somewhere, to the heading if it names one.

use std::fs;
use std::path::{Path, PathBuf};

use peerage_docs::top;

#[test]
fn every_link_between_pages_leads_to_a_file_and_its_heading() {
    let pages = pages();
    assert!(pages.len() > 30, "only {} pages were found", pages.len());
    let broken: Vec<String> = pages.iter().flat_map(|page| broken(page)).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// Every page that people read on their way through.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|page| top().join(page)).into();
    let mut folders = vec![top().join("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of docs") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages
}

fn broken(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).expect("a page");
    let folder = page.parent().expect("a page lies in a folder");
    let mut broken = Vec::new();
    for link in links(&text) {
        let (file, heading) = link.split_once('#').unwrap_or((link, ""));
        let target = if file.is_empty() { page.to_owned() } else { folder.join(file) };
        let leads = target.exists() && (heading.is_empty() || anchors(&target).iter().any(|anchor| anchor == heading));
        if !leads {
            broken.push(format!("{}: {link}", page.display()));
        }
    }
    broken
}

/// Targets of `[text](target)` that are not on other sites, outside of code.
fn links(text: &str) -> Vec<&str> {
    let prose = text.lines().filter(|line| !line.starts_with("    "));
    let found = prose.flat_map(|line| line.split("](").skip(1)).filter_map(|rest| rest.split(')').next());
    found.filter(|target| !target.contains("://") && !target.contains(' ')).collect()
}

/// The names by which GitHub links to the headings of a page.
fn anchors(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap_or_default();
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let slug = |heading: &str| {
        let heading = heading.to_lowercase();
        let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
        kept.collect::<String>().replace(' ', "-")
    };
    headings.map(slug).collect()
}
