//! What the pictures have in common: the frame of the SVG, its colours, and texts.

/// Class, property, and value on a light and on a dark page.
type Colour = (&'static str, &'static str, &'static str, &'static str);

/// The colours of GitHub's pages.
const COLOURS: [Colour; 12] = [
    ("page", "fill", "#ffffff", "#0d1117"),
    ("page", "stroke", "#d1d9e0", "#3d444d"),
    ("box", "fill", "#f6f8fa", "#151b23"),
    ("box", "stroke", "#818b98", "#656c76"),
    ("part", "fill", "#ddf4ff", "#10294b"),
    ("part", "stroke", "#54aeff", "#1f6feb"),
    ("text", "fill", "#1f2328", "#f0f6fc"),
    ("quiet", "fill", "#59636e", "#9198a1"),
    ("line", "stroke", "#59636e", "#9198a1"),
    ("strong", "fill", "#0969da", "#4493f8"),
    ("weak", "fill", "#afb8c1", "#656c76"),
    // Keeps texts readable that cross lines.
    ("halo", "stroke", "#ffffff", "#0d1117"),
];

pub const SANS: &str = "-apple-system,BlinkMacSystemFont,'Segoe UI','Noto Sans',Helvetica,Arial,sans-serif";
pub const MONO: &str = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace";

/// Returns an SVG with a background of its own, since a page can have another theme than the system that
/// `prefers-color-scheme` asks about. It can also stand inside an HTML page: styles are restricted to its ID, and no line is
/// blank, which would end it in Markdown.
pub fn picture(id: &str, [width, height]: [usize; 2], title: &str, style: &str, body: &str) -> String {
    let colours = |value: fn(&Colour) -> &'static str| -> String {
        let rule = |colour: &Colour| format!("#{id} .{}{{{}:{}}}", colour.0, colour.1, value(colour));
        COLOURS.iter().map(rule).collect::<Vec<_>>().join("\n")
    };
    let (light, dark) = (colours(|colour| colour.2), colours(|colour| colour.3));
    format!(
        "<svg id=\"{id}\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" role=\"img\" style=\"max-width:100%;height:auto\">\n<title>{title}</title>\n<style>\n\
         #{id} text{{font-family:{SANS};font-size:14px}}\n#{id} .mono{{font-family:{MONO};font-weight:600}}\n\
         #{id} .small{{font-size:12px}}\n#{id} .title{{font-size:17px;font-weight:600}}\n\
         #{id} .middle{{text-anchor:middle}}\n#{id} .line{{fill:none}}\n\
         #{id} .halo{{paint-order:stroke;stroke-width:4px}}\n\
         {light}\n@media (prefers-color-scheme:dark){{\n{dark}\n}}\n{style}</style>\n\
         <rect class=\"page\" x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n{body}</svg>\n",
        width - 1,
        height - 1,
        title = escape(title),
    )
}

pub fn text(class: &str, [x, y]: [f64; 2], text: &str) -> String {
    format!("<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>\n", escape(text))
}

pub fn rect(class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2]) -> String {
    format!("<rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"4\"/>\n")
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
