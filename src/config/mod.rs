//! The document as written: YAML to a tree with positions, items from the tree, files merged.
