//! Every file in configs/ is what it says it is, and what is wrong with a file is said with line and column.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;
use culvert_tests::Result;
use culvert_tests::process::ours;
use culvert_tests::site::Site;

/// All bootstraps below a folder; the control plane's directory holds none.
fn bootstraps(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("control") {
            found.extend(bootstraps(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    Ok(found)
}

fn validate(site: &Site, program: &str, args: &[&str]) -> Result<(Option<i32>, String)> {
    let output =
        Command::new(ours(program)?).args(args).args(["--mode", "validate"]).current_dir(site.folder()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ok((output.status.code(), text))
}

#[test]
fn every_bootstrap_is_valid() -> Result {
    let site = Site::lay_out()?;
    let files = bootstraps(site.folder())?;
    ensure!(files.len() >= 2, "expected cloud.yaml and edge.yaml at least, saw {files:?}");
    for file in files {
        let (code, text) = validate(&site, "culvert-proxy", &["-c", &file.to_string_lossy()])?;
        ensure!(code == Some(0), "{}: expected exit code 0, saw {code:?}:\n{text}", file.display());
    }
    Ok(())
}

#[test]
fn the_control_directory_is_valid_without_a_warning() -> Result {
    let site = Site::lay_out()?;
    let (code, text) = validate(&site, "culvert-control", &["--config", "control", "--strict"])?;
    ensure!(code == Some(0), "expected exit code 0, saw {code:?}:\n{text}");
    ensure!(!text.contains("warning"), "expected no warning, saw:\n{text}");
    Ok(())
}

#[test]
fn all_errors_of_a_bootstrap_come_at_once_with_line_column_and_path() -> Result {
    let site = Site::lay_out()?;
    let bad = "node: {id: x, cluster: y}\n\
               static_resources:\n\
               \x20 clusters:\n\
               \x20 - name: a\n\
               \x20   typ: STATIC\n\
               \x20   connect_timeout: soon\n\
               \x20 - name: b\n\
               \x20   lb_policy: BEST\n\
               \x20 - name: c\n\
               \x20   lb_policy: MAGLEV\n\
               \x20 secrets:\n\
               \x20 - name: s\n\
               \x20   generic_secret: {secret: {filename: none.txt}}\n";
    std::fs::write(site.folder().join("bad.yaml"), bad)?;
    let start = || -> Result<(Option<i32>, String)> {
        let output =
            Command::new(ours("culvert-proxy")?).args(["-c", "bad.yaml"]).current_dir(site.folder()).output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    for (code, text) in [validate(&site, "culvert-proxy", &["-c", "bad.yaml"])?, start()?] {
        ensure!(code == Some(2), "expected exit code 2, saw {code:?}:\n{text}");
        for wanted in [
            "bad.yaml:5:5",
            "bad.yaml:6:22",
            "bad.yaml:8:16",
            "bad.yaml:10:16",
            "clusters[0]",
            "clusters[1].lb_policy",
            "bad.yaml:12:5: static_resources.secrets[0]",
        ] {
            ensure!(text.contains(wanted), "expected {wanted} in:\n{text}");
        }
    }
    Ok(())
}

#[test]
fn all_errors_of_a_control_directory_come_at_once() -> Result {
    let site = Site::lay_out()?;
    let cluster = "\"@type\": type.googleapis.com/envoy.config.cluster.v3.Cluster\n";
    std::fs::write(site.folder().join("control/a.yaml"), format!("{cluster}name: [x]\n"))?;
    std::fs::write(site.folder().join("control/b.yaml"), format!("{cluster}name: ''\n"))?;
    let (code, text) = validate(&site, "culvert-control", &["--config", "control"])?;
    ensure!(code == Some(2), "expected exit code 2, saw {code:?}:\n{text}");
    for wanted in ["a.yaml:2:7", "b.yaml"] {
        ensure!(text.contains(wanted), "expected {wanted} in:\n{text}");
    }
    Ok(())
}
