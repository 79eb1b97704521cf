package enclave

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"sync"

	"github.com/mrgc/mrgc/internal/api"
)

// keptKeyReleases is how many are kept for the parent, which asks every second.
const keptKeyReleases = 4096

// keyReleases are the data keys that KMS was asked for, and what the enclave came to
// think of its engine's host, until the parent has them in its audit log. That log is for the operator's order; what proves a release to
// the tenant is KMS's own, which the parent cannot write.
type keyReleases struct {
	mu      sync.Mutex
	enclave string           // guarded by mu: names this start; empty until somebody asks
	last    uint64           // guarded by mu: sequence number
	taken   uint64           // guarded by mu: the parent has all up to this one
	kept    []api.KeyRelease // guarded by mu: in order, the last ones after taken
}

func (k *keyReleases) add(release api.KeyRelease) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.last++
	release.Sequence = k.last
	k.kept = append(k.kept, release)
	k.trim(len(k.kept) - keptKeyReleases)
}

// trim forgets the first n; the caller holds mu.
func (k *keyReleases) trim(n int) {
	if n > 0 {
		k.kept = slices.Delete(k.kept, 0, n)
	}
}

// after takes note that whoever asks has all of this enclave's up to a sequence
// number, and gives the rest.
func (k *keyReleases) after(enclave string, sequence uint64) api.KeyReleases {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.enclave == "" {
		k.enclave = rand.Text()
	}
	if enclave == k.enclave && sequence <= k.last && sequence > k.taken {
		k.taken = sequence
	}
	before := k.last - uint64(len(k.kept)) // the first that is kept
	if k.taken > before {
		k.trim(int(k.taken - before))
		before = k.taken
	}
	return api.KeyReleases{Enclave: k.enclave, Lost: before - k.taken, Releases: append([]api.KeyRelease{}, k.kept...)}
}

// serveKeyReleases tells the parent.
func (e *Enclave) serveKeyReleases(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	after, err := strconv.ParseUint(query.Get("after"), 10, 63)
	if err != nil {
		api.Errorf(http.StatusBadRequest, "invalid_request", "after is not a sequence number").Write(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(e.releases.after(query.Get("enclave"), after)) // the parent asks again
}
