//! On which memory node a frame is.

use std::collections::HashMap;

use crate::procfs::ProcFs;
use crate::units::page_size;

/// The nodes of this machine.
pub struct Nodes {
    /// The only node there is.
    only: Option<u32>,
    /// Frames of a block.
    frames: u64,
    /// The node of each block; `None`: it has memory of several.
    blocks: HashMap<u64, Option<u32>>,
}

impl Nodes {
    /// Reads them from `/sys/devices/system/node`.
    pub fn read(procfs: &ProcFs) -> Self {
        let online = procfs.nodes("online");
        if let [only] = online[..] {
            return Self { only: Some(only), frames: 1, blocks: HashMap::new() };
        }
        let (size, listed) = procfs.memory_blocks().unwrap_or_default();
        let mut blocks = HashMap::with_capacity(listed.len());
        for (block, node) in listed {
            blocks.entry(block).and_modify(|known| *known = None).or_insert(Some(node));
        }
        Self { only: None, frames: (size / page_size()).max(1), blocks }
    }

    /// The node a frame is on; `None` if the kernel does not tell.
    pub fn of(&self, frame: u64) -> Option<u32> {
        self.only.or_else(|| self.blocks.get(&(frame / self.frames)).copied().flatten())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_frame_is_on_the_node_of_its_block() {
        let root = std::env::temp_dir().join(format!("mw-nodes-{}", std::process::id()));
        let node = root.join("sys/devices/system/node");
        for folder in ["node0/memory0", "node0/memory1", "node1/memory1", "node1/memory8"] {
            fs::create_dir_all(node.join(folder)).unwrap();
        }
        fs::create_dir_all(root.join("sys/devices/system/memory")).unwrap();
        fs::write(root.join("sys/devices/system/memory/block_size_bytes"), "8000000\n").unwrap();
        fs::write(node.join("online"), "0-1\n").unwrap();
        let nodes = Nodes::read(&ProcFs::new(&root));
        let frames = 0x800_0000 / page_size();
        let of = |block: u64| nodes.of(block * frames + 17);
        assert_eq!((of(0), of(1), of(2), of(8)), (Some(0), None, None, Some(1)));
        fs::write(node.join("online"), "3\n").unwrap();
        assert_eq!(Nodes::read(&ProcFs::new(&root)).of(u64::MAX), Some(3));
        fs::remove_dir_all(root).unwrap();
    }
}
