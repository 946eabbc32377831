//! Compiles every `src/bpf/*.bpf.c` (and the benchmarks' own) into a skeleton in the build's output
//! folder, and lists the modules of the live tests. Knows no tool by name and
//! writes nothing into the source tree.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;

    skeletons(&root, &out, &arch)?;
    live_tests(&root, &out)
}

fn skeletons(root: &Path, out: &Path, arch: &str) -> Result<()> {
    let bpf = root.join("src/bpf");
    let vmlinux = root.join("vmlinux").join(arch);
    if !vmlinux.join("vmlinux.h").exists() {
        return Err(format!("no vmlinux/{arch}/vmlinux.h: run tools/vmlinux").into());
    }
    for dir in [&bpf, &bpf.join("include"), &vmlinux] {
        println!("cargo:rerun-if-changed={}", dir.display());
    }
    // The empty programs that benchmarks compare with are built alike.
    let mut sources = files(&bpf, ".bpf.c")?;
    for source in files(&root.join("tests/bench"), ".bpf.c")? {
        println!("cargo:rerun-if-changed={}", source.display());
        sources.push(source);
    }
    for source in sources {
        let name = stem(&source, ".bpf.c")?;
        SkeletonBuilder::new()
            .source(&source)
            .obj(out.join(format!("{name}.bpf.o")))
            .clang_args([
                OsStr::new("-mcpu=v3"),
                OsStr::new("-Wall"),
                OsStr::new("-Werror"),
                OsStr::new("-I"),
                vmlinux.as_os_str(),
                OsStr::new("-I"),
                bpf.join("include").as_os_str(),
            ])
            .build_and_generate(out.join(format!("{name}.skel.rs")))?;
    }
    Ok(())
}

/// A live test is found by its file name: `tests/live/main.rs` includes this
/// list, so adding one changes no existing file.
fn live_tests(root: &Path, out: &Path) -> Result<()> {
    let dir = root.join("tests/live");
    println!("cargo:rerun-if-changed={}", dir.display());
    let mut modules = String::new();
    let mut names = Vec::new();
    if dir.exists() {
        for file in files(&dir, ".rs")? {
            let name = stem(&file, ".rs")?;
            if name != "main" {
                writeln!(modules, "#[path = {:?}]\nmod {name};", file.display().to_string())?;
                names.push(format!("{name}::tests()"));
            }
        }
    }
    writeln!(
        modules,
        "fn all() -> Vec<libtest_mimic::Trial> {{ [{}].into_iter().flatten().collect() }}",
        names.join(", ")
    )?;
    write_if_changed(&out.join("live_tests.rs"), &modules)
}

/// The files of a folder whose names end in `suffix`, in a stable order.
fn files(dir: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_file() && path.to_string_lossy().ends_with(suffix) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn stem<'path>(path: &'path Path, suffix: &str) -> Result<&'path str> {
    path.file_name()
        .and_then(OsStr::to_str)
        .and_then(|name| name.strip_suffix(suffix))
        .ok_or_else(|| format!("odd file name: {}", path.display()).into())
}

fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    Ok(fs::write(path, text)?)
}
