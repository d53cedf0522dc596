//! The tests that docs/hazards.md and the README's contract name are there.

use std::path::Path;

fn sources(folder: &Path, all: &mut String) {
    for found in std::fs::read_dir(folder).unwrap().flatten() {
        let path = found.path();
        if path.is_dir() && found.file_name() != "target" {
            sources(&path, all);
        } else if path.extension().is_some_and(|e| e == "rs") {
            all.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_named_test_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut all = String::new();
    for folder in ["dth-core", "dth-ecr", "dth-oss-cos-kodo", "dth-s3", "dth-state", "examples", "benches"] {
        sources(&root.join(folder), &mut all);
    }
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let readme = read("README.md");
    let contract = readme.split("| promise | test |").nth(1).unwrap().split("\n\n").next().unwrap();
    let text = read("docs/hazards.md") + contract;
    let names: Vec<&str> = text.lines().filter(|l| l.starts_with("| ")).flat_map(|l| l.split('`').skip(1).step_by(2)).collect();
    let is_test = |name: &&str| name.contains('_') && !name.contains("::") || *name == "table";
    let missing: Vec<&str> =
        names.iter().copied().filter(is_test).filter(|n| !all.contains(&format!("fn {n}(")) && *n != "find_keys").collect();
    assert!(missing.is_empty() && names.len() > 80, "not in the sources: {missing:?} of {}", names.len());
}
