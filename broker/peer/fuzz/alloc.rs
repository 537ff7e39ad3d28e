//! An allocator that notes how much it is asked for at once. A length from outside that sizes an allocation shows there and nowhere else: memory that nobody
//! touches is no memory of the process. The fuzz targets of other crates include this file by its path.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

struct Noting;

#[global_allocator]
static ALLOCATOR: Noting = Noting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

/// Runs `work` and says how large its largest single allocation was.
pub fn largest_of<T>(work: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.store(0, Relaxed);
    let outcome = work();
    (outcome, LARGEST.load(Relaxed))
}

// SAFETY: everything is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller promises the same to both.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        // SAFETY: the caller promises the same to both.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Relaxed);
        // SAFETY: the caller promises the same to both.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller promises the same to both.
        unsafe { System.dealloc(block, layout) }
    }
}
