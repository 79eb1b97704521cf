-- Who asks: the tenant of the edge token, by the token's SHA-256, or of the client's
-- certificate, by a name in it. Both are the filter's context (package xds renders it
-- into the routes): digest in hex, or "uri:…" or "dns:…" → "<access> <tenant>". The
-- answer is dynamic metadata, which no client can set; routes go by it. Whatever goes
-- wrong here leaves a request nobody's, and the routes refuse it.

local band, bor, bxor, bnot = bit.band, bit.bor, bit.bxor, bit.bnot
local lshift, rshift, ror, tobit = bit.lshift, bit.rshift, bit.ror, bit.tobit

-- FIPS 180-4, section 4.2.2.
local K = {
  0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
  0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
  0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
  0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
  0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
  0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
  0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
  0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}

-- A token is shorter than one block of SHA-256, which is all that is needed.
local longest = 55

-- The message schedule, used again: a worker hashes one token at a time.
local w = {}

-- sha256 is FIPS 180-4, section 6.2.2, of one block.
local function sha256(text)
  local block = text .. "\128" .. string.rep("\0", longest - #text)
    .. "\0\0\0\0\0\0" .. string.char(rshift(#text, 5), band(#text * 8, 0xff))
  for t = 1, 16 do
    local p, q, r, s = string.byte(block, 4 * t - 3, 4 * t)
    w[t] = bor(lshift(p, 24), lshift(q, 16), lshift(r, 8), s)
  end
  for t = 17, 64 do
    local x, y = w[t - 15], w[t - 2]
    w[t] = tobit(w[t - 16] + w[t - 7]
      + bxor(ror(x, 7), ror(x, 18), rshift(x, 3))
      + bxor(ror(y, 17), ror(y, 19), rshift(y, 10)))
  end
  local a, b, c, d = 0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a
  local e, f, g, h = 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19
  for t = 1, 64 do
    local t1 = h + bxor(ror(e, 6), ror(e, 11), ror(e, 25)) + bxor(band(e, f), band(bnot(e), g)) + K[t] + w[t]
    local t2 = bxor(ror(a, 2), ror(a, 13), ror(a, 22)) + bxor(band(a, b), band(a, c), band(b, c))
    h, g, f, e, d, c, b, a = g, f, e, tobit(d + t1), c, b, a, tobit(t1 + t2)
  end
  local words = {
    a + 0x6a09e667, b + 0xbb67ae85, c + 0x3c6ef372, d + 0xa54ff53a,
    e + 0x510e527f, f + 0x9b05688c, g + 0x1f83d9ab, h + 0x5be0cd19,
  }
  for i, word in ipairs(words) do
    words[i] = bit.tohex(tobit(word))
  end
  return table.concat(words)
end

-- by_token gives whom a token is of.
local function by_token(known, authorization)
  -- Two Authorization headers come as one with a comma, which no token has.
  local scheme, token = string.match(authorization, "^(%a+) ([%w_-]+)$")
  if token == nil or string.lower(scheme) ~= "bearer" or #token > longest then
    return nil
  end
  return known:get(sha256(token))
end

-- by_certificate gives whom the client's certificate is of, and which name in it says
-- so; nobody if its names are of two. Envoy has verified it: with one that does not
-- verify there is no connection.
local function by_certificate(known, ssl)
  if ssl == nil or not ssl:peerCertificatePresented() or not ssl:peerCertificateValidated() then
    return nil
  end
  local who, san
  for _, kind in ipairs({ { "uri:", ssl:uriSanPeerCertificate() }, { "dns:", ssl:dnsSansPeerCertificate() } }) do
    for _, name in ipairs(kind[2]) do
      local named = known:get(kind[1] .. name)
      if named ~= nil and who ~= nil and named ~= who then
        return nil
      elseif named ~= nil and who == nil then
        who, san = named, kind[1] .. name
      end
    end
  end
  return who, san
end

function envoy_on_request(handle)
  local headers, known = handle:headers(), handle:filterContext()
  local who, san = by_certificate(known, handle:streamInfo():downstreamSslConnection())
  local authorization = headers:get("authorization")
  if authorization ~= nil then
    local named = by_token(known, authorization)
    if named == nil or who ~= nil and who ~= named then
      return
    end
    who = named
  end
  if who == nil then
    return
  end
  local access, tenant = string.match(who, "^(%S+) (%S+)$")
  -- A tenant speaks for itself alone. What is no tenant's name at all is the
  -- picker's to explain.
  local claimed = headers:get("mrgc-tenant")
  if claimed ~= nil and claimed ~= tenant and string.find(claimed, "^[%l%d-]+$") then
    return
  end
  if san ~= nil then -- for picker and routers; the client's own was removed on the way in
    headers:replace("mrgc-tenant-san", san)
  end
  handle:streamInfo():dynamicMetadata():set("mrgc", "access", access)
  handle:clearRouteCache()
end
