//! Rectangles and their overlaps.

/// xyxy in pixels, `x1 > x0` and `y1 > y0`, all finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rect(pub(super) [f64; 4]);

/// Furthest from the corner that a box may reach, in pixels: products of four such numbers are still exact enough.
const FURTHEST: f32 = 1e7;

impl Rect {
    /// The box of a detection; `None` if it has no area or is nowhere.
    pub(super) fn new(sides: [f32; 4]) -> Option<Self> {
        let [x0, y0, x1, y1] = sides;
        // A NaN is in no range.
        let there = (sides.iter()).all(|side| (-FURTHEST..=FURTHEST).contains(side));
        (there && x1 > x0 && y1 > y0).then(|| Self(sides.map(f64::from)))
    }

    /// Of this centre and these extents.
    pub(super) fn around([x, y]: [f64; 2], [width, height]: [f64; 2]) -> Self {
        let (width, height) = (width / 2.0, height / 2.0);
        Self([x - width, y - height, x + width, y + height])
    }

    pub(super) fn center(&self) -> [f64; 2] {
        let [x0, y0, x1, y1] = self.0;
        [(x0 + x1) / 2.0, (y0 + y1) / 2.0]
    }

    pub(super) fn extent(&self) -> [f64; 2] {
        let [x0, y0, x1, y1] = self.0;
        [x1 - x0, y1 - y0]
    }

    /// Side of the square of the same area.
    pub(super) fn size(&self) -> f64 {
        let [width, height] = self.extent();
        (width * height).sqrt()
    }

    /// Wider by `margin` at each side.
    fn widened(&self, margin: f64) -> Self {
        let [x0, y0, x1, y1] = self.0;
        Self([x0 - margin, y0 - margin, x1 + margin, y1 + margin])
    }

    /// Overlap over union.
    pub(super) fn iou(&self, other: &Self) -> f64 {
        let along = |low: usize| {
            (self.0[low + 2].min(other.0[low + 2]) - self.0[low].max(other.0[low])).max(0.0)
        };
        let both = along(0) * along(1);
        let area = |rect: &Self| {
            let [width, height] = rect.extent();
            width * height
        };
        both / (area(self) + area(other) - both)
    }

    /// Overlap over union of both boxes widened by `margin`: what is unsure by that much still meets.
    pub(super) fn iou_within(&self, other: &Self, margin: f64) -> f64 {
        self.widened(margin).iou(&other.widened(margin))
    }
}
