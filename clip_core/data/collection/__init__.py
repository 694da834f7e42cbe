"""From texts and addresses of pictures to data that a recipe reads.

`words` counts the words of a Wikipedia dump, to search pictures for. `lists` reads and joins lists of addresses with
captions. `downloads` fetches their pictures (each by `fetching`) into a folder or into shards, and `index` writes the
table of those that are large enough.
"""
