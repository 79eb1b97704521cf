package api

// Headers between enclave and guard, by which an engine's prefix cache keeps
// tenants apart. They go no further.
const (
	// HeaderCacheSalt is the salt of a request, as text: prompts that came under
	// another one are as if they had never been.
	HeaderCacheSalt = "Mrgc-Cache-Salt"
	// HeaderCache is what the guard has made of it, one of the Cache constants.
	HeaderCache = "Mrgc-Cache"
)

// Values of [HeaderCache].
const (
	CacheSalt  = "salt"  // the engine got the salt and looks prefixes up under it: vLLM's cache_salt
	CacheSlots = "slots" // the engine knows no salt: the request got a slot that held nothing but prompts under its salt, or was told to use nothing that it held
	CacheNone  = "none"  // the engine was told nothing: it has to be one that reuses no prompts
)
