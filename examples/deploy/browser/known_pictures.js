/**
 * A JPEG and a WebP of 16 x 16 pixels, with the checksum (picture.js) of the RGB bytes that Pillow decodes, by which the
 * page sees whether this browser decodes them alike. tests/examples/test_browser.py compares the checksums with Pillow's.
 */

export const KNOWN_PICTURES = {
  jpeg: {
    sum: 208719623,
    base64:
      "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxO" +
      "UlNSMj5aYVpQYEpRUk//2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09P" +
      "T09PT09PT0//wAARCAAQABADASIAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAABQID/8QAHhAAAQQDAQEBAAAAAAAAAAAAAgED" +
      "BREABBIhExT/xAAUAQEAAAAAAAAAAAAAAAAAAAAE/8QAHxEAAgECBwAAAAAAAAAAAAAAAQIDABIEERMyQVHB/9oADAMBAAIRAxEA" +
      "PwBhjmNYMVK+krDNKUSPecJpPp0t+Zht7RbIKF1eRCR/4yM3S76W/cKrPiYrWGcg57orFkXUkS0nb7X/2Q==",
  },
  webp: {
    sum: 471074332,
    base64:
      "UklGRn4AAABXRUJQVlA4IHIAAACwAgCdASoQABAAAoBCJbACdD3zNK09lUF2e9ksvoQA4niwHdhasDhW+4PphupOdyZ9XGa0vwtC" +
      "AoeEjwNtYQMKZtXUmHL/Ye58NUqvXs+ZP6xAb7bUaH6/2rYd/rpvvAuGvd/tlt7nxCGp3yfPHaNYgAA=",
  },
};
