-- Fingerprints of content. A caller gives several names of one digest, comma-separated, because the stored one may have
-- been made under another encryption key: the first is stored, and all count as equal.

local function first_fingerprint(names) return string.match(names, '^[^,]*') end

local function is_same_content(names, stored)
  return names ~= nil and stored and string.find(',' .. names .. ',', ',' .. stored .. ',', 1, true) ~= nil
end
