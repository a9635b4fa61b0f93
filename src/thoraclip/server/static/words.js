// Every sentence that the page makes from the API's answers. Pure functions: JSON in, text out.

const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}\u00a0%`; // no line breaks before the sign
const list = names => new Intl.ListFormat("en-GB").format(names);
const megabytes = bytes => `${Math.ceil(bytes / 1e5) / 10}\u00a0MB`;

export const READING = "Reading the image…";
export const EXPLAINING = "Drawing the heat map…";
export const EMPTY = "This file is empty.";
export const UNREADABLE = "The browser cannot read this file.";
export const GONE =
  "The server does not answer: it was stopped, or the connection is lost. The page continues once the server answers.";
export const NO_OOD = "This bundle cannot tell whether an image is unlike its training images.";
export const CHOSEN = "The chosen image";
export const COLUMNS = ["Class", "Probability", "Prediction set"];
export const SIMILAR = "Most similar training images ";
export const AND_SIMILARITY = "and their similarity";
export const SIMILARITY = "similarity ";
export const PASTED = "from the clipboard";
export const SYNTHETIC = "a synthetic radiograph, drawn by a program: no patient";

/** What a file may be, for the drop zone. */
export const accepted = most => `PNG, JPEG or DICOM, up to ${megabytes(most)}`;

export const tooLarge = (size, most) =>
  `This file has ${megabytes(size)}; the server takes up to ${megabytes(most)}.`;

/** A probability; never 0 or 100 %, which no classifier knows. */
export function chance(score) {
  if (score < 0.001) return `< ${percent(0.001, 1)}`;
  return score > 0.999 ? `> ${percent(0.999, 1)}` : percent(score, 1);
}

/** What a bundle can tell, from its entry in /v1/bundles. */
export function facts(bundle) {
  return [
    bundle.calibrated ? "Calibrated probabilities" : "Probabilities, as the model gives them: not calibrated",
    bundle.set_coverage === null
      ? "It does not abstain: no prediction sets" : "Which classes cannot be ruled out, and so when it abstains",
    bundle.detects_ood
      ? "A warning when an image is unlike the training images"
      : "No warning when an image is unlike the training images",
    "Where in the image the evidence lies",
    ...(bundle.thumbnails ? ["The most similar training images"] : []),
  ];
}

/** What the prediction sets hold to; empty without sets. */
export function promise({set_coverage: share}) {
  if (share === null) return "";
  return `On images like those it was calibrated on, the true class is not ruled out in ${percent(share)} of cases.`;
}

/** An image's prediction set: `kind` is one, several, none, or absent for a bundle without sets. */
export function verdict({label, set}) {
  const said = (kind, headline, detail) => ({kind, headline, detail});
  if (set === null) {
    const detail = "The bundle has no prediction sets: it does not say which classes can be ruled out.";
    return said("absent", `Most likely ${label}`, detail);
  }
  if (!set.length) {
    const detail = "The bundle rules out every class that it knows. The bars only say which is nearest.";
    return said("none", "Looks like no class", detail);
  }
  if (set.length === 1) return said("one", set[0], `${set[0]} is the only class that the bundle cannot rule out.`);
  const detail = `${set.length === 2 ? "Neither" : "None of them"} can be ruled out.`;
  return said("several", `The bundle abstains between ${list(set)}`, detail);
}

/** Of an image unlike the training images; with the bundle's name where there are several. */
export const warning = name => `${name && `${name}: `}This does not look like the images that the classifier was`
  + " trained on; the numbers below mean nothing.";

/** For a screen reader, which reads a warning by itself. */
export function spoken(bundle, image) {
  if (image.ood) return "";
  const {headline, detail} = verdict(image);
  return `${bundle.name}: ${headline}. ${detail}`;
}

export const scale = ({calibrated}) => calibrated ? "Calibrated probability" : "Probability, not calibrated";

export const kept = isKept => isKept ? "not ruled out" : "ruled out";
export const trainingImage = label => `Training image of class ${label}`;
export const legend = ({name}) => `Heat map of ${name}`;
export const opacity = value => `${value}\u00a0%`;

export const layers = explained => ({
  picture: "The radiograph, as the server reads it",
  heat: `Heat map: evidence for ${explained.explained}, by ${explained.method}`,
  outline: "Outline of the lungs",
});

/** What must be known beside a heat map. */
export function caption({evidence_in_lungs: evidence, lung_area: area, lungs_from: from, outline}) {
  const words = [`Lung outline: ${from}.`, "The colour is scaled to this image's hottest place. A map is no proof."];
  if (evidence === null && outline) {
    words.splice(1, 0, "The map is empty: this method sees no evidence for the class.");
  }
  if (evidence !== null && area !== null) {
    const share = `${percent(evidence)} of the evidence lies in the lungs`;
    words.unshift(`${share}, which cover ${percent(area)} of the image.`);
  }
  return words.join(" ");
}

/** Why there is no answer, from RFC 9457 problem details. */
export function refusal(status, {detail, pictures}, retryAfter) {
  if (!detail) return `No answer: the server failed with status ${status}.`;
  if (pictures) return `This image cannot be read: ${detail}.`;
  if (status === 429 || status === 503) {
    return `The server is busy: ${detail}.${retryAfter ? ` Try again in ${retryAfter} s.` : ""}`;
  }
  return `No answer: ${detail}.`;
}
