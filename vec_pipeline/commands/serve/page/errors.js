/* Why a picture has no row, or one with an error: sentences for the usual causes, by the texts of errors. */

const DAMAGED = "The file is damaged, or not a picture of a known kind. Choose another file.";
const NOT_FOUND = "The picture was not found at this address. Check the address.";
const UNREACHED = "The site of this address cannot be reached, or does not answer as it should. Check the address, or try again later.";
/** The first that fits: what errors of rows say (`stage: Class: message`), and messages of refusals and downloads. */
const CAUSES = [
  [/^open_image: .*: the file is empty$/, "The file is empty. Choose another one."],
  [/^open_image: .*\b(?:image file is truncated|Truncated File Read|broken data stream|not enough image data)/, "The file is cut off: a part of the picture is missing. Send the whole file."],
  [/^open_image: .*more than max_megapixels \((?<most>\d+)\)/, "The picture is too large: this server takes {most} megapixels at most. Choose a smaller one."],
  [/^open_image: MissingDecoder: /, "This server cannot open pictures of this kind. Choose a JPEG, PNG or WebP file, for example."],
  [/^open_image: (?:UnidentifiedImageError|NotRaw|OSError|ValueError|IndexError|SyntaxError|EOFError): (?!\[Errno)/, DAMAGED],
  [/^more than (?:max_download_mb \()?(?<most>\d+)(?:\)| MB$)/, "The file is too large: this server takes {most} MB at most. Choose a smaller one."],
  [/^the host is in a private network/, "The address is in a private network, from which this server takes nothing. Give another address, or send the picture itself."],
  [/^the server sent /, "There is no picture at this address, but something else, such as a web page. Give the address of the picture itself."],
  [/^(?:Not Found|Gone|the picture has one pixel|the server redirects to a picture that stands for a missing one)\b/, NOT_FOUND],
  [/^(?:Unauthorized|Forbidden|Unavailable For Legal Reasons)\b/, "The site of this address does not let this server have the picture. Send the picture itself."],
  [/^the server forbids its use by AI/, "The site of this address forbids the use of its pictures by AI. Choose another picture."],
  [/^(?:this is not a complete address|the address cannot be asked for)/, "The address is not complete, or has a mistake. Correct it."],
  [/^(?:no host has this name|names of hosts cannot be looked up|the host could not be connected to|the certificate of the host|no encrypted connection|no connection)/, UNREACHED],
  [/^(?:Connection (?:refused|reset|timed out)|No route to host|Network is (?:unreachable|down)|the proxy answered|it redirects)/, UNREACHED],
  [/^(?:nothing came any more|it was not there within|the connection ended|the answer is not valid HTTP|the server (?:says that it is|compresses)|what the server compressed)/, UNREACHED],
  [/^(?:Bad Request|Too Many Requests|Internal Server Error|Bad Gateway|Service Unavailable|Gateway Timeout)\b/, UNREACHED],
];
const KIND = /^(?:download: )?(?:[A-Z]\w*: )?/; // of a download
const CLASS = /^(\w+: )?[A-Z]\w*: (?=.)/; // after the stage, where there is one

/** What to say about the text of an error: a text of words.js and its values; `otherwise`, with a `{detail}`, about others. */
export function worded(error, otherwise) {
  for (const [pattern, text] of CAUSES) {
    const found = error.replace(KIND, "").match(pattern);
    if (found) return { text, values: { ...found.groups } };
  }
  return { text: otherwise, values: { detail: error.replace(CLASS, "$1") } };
}
