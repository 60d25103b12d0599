"""The bottom: number formats, granularity, the affine map, packing, error theory. Imports torch and nothing above."""
