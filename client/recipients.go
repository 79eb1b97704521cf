package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/mrgc/mrgc/internal/api"
	"github.com/mrgc/mrgc/internal/credential"
	"github.com/mrgc/mrgc/internal/seal"
)

const (
	// recipientsRefresh is how old a list of recipients grows before the next
	// request has it fetched again, beside itself.
	recipientsRefresh  = 5 * time.Second
	recipientsTimeout  = 10 * time.Second
	maxRecipientsBytes = 1 << 20
	// setsWanted is how many selections of recipients a list has: with two local ones in
	// each, all of a region of 20 instances and more, for a client that sends much within
	// recipientsRefresh.
	setsWanted = api.MaxSets
	// maxEarlier is how many recipients are kept beside the present list.
	maxEarlier = 256
)

// recipientCache holds verified recipients by region and model: each region
// offers what is near to it. Verification does not depend on who asked, so tenants
// share it.
type recipientCache struct {
	client  *Client
	fetches singleflight.Group

	turn  atomic.Uint64 // counts the requests that were given recipients
	mu    sync.Mutex
	lists map[listOf]recipientList // guarded by mu
}

// listOf says what a list is of.
type listOf struct {
	region *region
	model  string
}

// recipient is one that was verified, with what proves it to others.
type recipient struct {
	*seal.Recipient
	attestation []byte
	verifiedAt  time.Time
	judged      atomic.Pointer[judgement] // the newest
}

// judgement is whether a recipient's release is trusted, by whom.
type judgement struct {
	by *trust
	ok bool
}

// recipientList is one fetch's verified recipients. It does not change.
type recipientList struct {
	recipients []*recipient
	// sets are selections of them, each as good as the others, for requests to take in
	// turn; none: of a server that knows of none.
	sets [][]*recipient
	// earlier are those of earlier fetches that were not listed again: busier now,
	// but good, and perhaps where a conversation is at home.
	earlier []*recipient
	// fleet are the keys that many hold, the last listed first: for when of the
	// others none is there.
	fleet   []*recipient
	version int // counts the fetches; 0: none yet
	fetched time.Time
}

func newRecipientCache(c *Client) *recipientCache {
	return &recipientCache{client: c, lists: map[listOf]recipientList{}}
}

// get gives verified recipients, from the cache when it has any whose claims
// outlast the request. A list that has aged is fetched again in the background:
// a router that is slow or gone delays nobody whose recipients are still valid.
func (rc *recipientCache) get(ctx context.Context, r *region, key *credential.Key, model string) (recipientList, error) {
	list := rc.usable(r, model)
	if list.wanting(&rc.client.config.Policy) {
		newer, err := rc.newer(ctx, r, key, model, list.version)
		if err != nil && len(list.fleet) > 0 && ctx.Err() == nil {
			return list, nil // the fleet's key is for this
		}
		return newer, err
	}
	if rc.client.config.Now().Sub(list.fetched) >= recipientsRefresh {
		_ = rc.fetchNewer(ctx, r, key, model, list.version) // nobody waits for it
	}
	return list, nil
}

// newer gives a list that was fetched after the one of version seen.
func (rc *recipientCache) newer(ctx context.Context, r *region, key *credential.Key, model string, seen int) (recipientList, error) {
	select {
	case result := <-rc.fetchNewer(ctx, r, key, model, seen):
		list, _ := result.Val.(recipientList) // empty with an error
		return list, result.Err
	case <-ctx.Done():
		return recipientList{}, ctx.Err()
	}
}

// fetchNewer fetches and verifies recipients, unless there is a newer list than
// the one of version seen by now. Callers with one key who have seen one version
// share one fetch, which goes on when they leave.
func (rc *recipientCache) fetchNewer(ctx context.Context, r *region, key *credential.Key, model string, seen int) <-chan singleflight.Result {
	shared := fmt.Sprintf("%d %s %d %s", r.place, credential.DigestOf(key.EdgeToken()), seen, model)
	return rc.fetches.DoChan(shared, func() (any, error) {
		if list := rc.usable(r, model); list.version > seen && !list.wanting(&rc.client.config.Policy) {
			return list, nil
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recipientsTimeout)
		defer cancel()
		answer, err := rc.fetch(ctx, r, key, model)
		if err != nil {
			rc.client.config.Logger.Warn("recipients could not be fetched; those that are known go on", "endpoint", r.url.Host, "model", model, "error", err)
			return recipientList{}, err
		}
		verified, err := rc.verify(answer.Recipients, model)
		if err != nil {
			return recipientList{}, err
		}
		rc.store(r, model, verified, answer.Sets)
		return rc.usable(r, model), nil // other releases may be trusted than when the earlier ones were verified
	})
}

// usable gives the present list without recipients that a request made now
// might outlive, or whose release is not trusted any more.
func (rc *recipientCache) usable(r *region, model string) recipientList {
	list := rc.list(r, model)
	now := rc.client.config.Now()
	bad := func(r *recipient) bool { return !rc.outlasts(r.Claims(), now) || !rc.trusted(r) }
	list.recipients = slices.DeleteFunc(slices.Clone(list.recipients), bad)
	list.earlier = slices.DeleteFunc(slices.Clone(list.earlier), bad)
	list.fleet = slices.DeleteFunc(slices.Clone(list.fleet), bad)
	return list
}

// trusted says whether the releases that are trusted now are a recipient's, too: its
// document is verified again, as of then, when they have changed.
func (rc *recipientCache) trusted(r *recipient) bool {
	now := rc.client.trust.Load()
	judged := r.judged.Load()
	if judged == nil || judged.by != now {
		policy := rc.client.policy(now)
		_, err := policy.attested(r.Recipient, r.attestation, r.verifiedAt)
		if err != nil {
			rc.client.config.Logger.Warn("a recipient is trusted no more", "kid", r.KeyID(), "error", err)
		}
		judged = &judgement{by: now, ok: err == nil}
		r.judged.Store(judged)
	}
	return judged.ok
}

// wanting says whether the list has nothing of the kind that requests are sealed to
// as a rule: a fleet's key, for who accepts nothing else.
func (l recipientList) wanting(p *Policy) bool {
	return len(l.recipients) == 0 && (len(l.fleet) == 0 || p.acceptsType(seal.TypeEnclave))
}

// all are those that are known, of whatever kind.
func (l recipientList) all() []*recipient { return slices.Concat(l.recipients, l.earlier, l.fleet) }

// find gives the recipient of that key; nil if it is not known any more.
func (l recipientList) find(kid seal.KeyID) *recipient {
	for _, r := range slices.Concat(l.recipients, l.earlier) {
		if r.KeyID() == kid {
			return r
		}
	}
	return nil
}

// choose gives n recipients to seal to: those of the set whose turn it is, in the
// server's order, which is a hint about load, and home, unless that is nil or among
// them. It comes on top of three, as each of those may be the only one of its kind: of
// a version, or of another region, as the last often is. Where there is no room, or
// fewer are wanted, home takes the place of the last but one. A set that is short, as
// one is that an instance gives in the routers' place, is filled up with others, and
// with earlier ones: else all requests would be for that instance. When there is nobody
// else it is a fleet's key.
func (l recipientList) choose(n int, home *recipient, turn uint64) []*recipient {
	if len(l.recipients)+len(l.earlier) == 0 {
		return l.fleet[:min(1, len(l.fleet))]
	}
	var first []*recipient
	if len(l.sets) > 0 {
		for _, r := range l.sets[turn%uint64(len(l.sets))] {
			if len(first) < n && slices.Contains(l.recipients, r) { // it may have expired since
				first = append(first, r)
			}
		}
	}
	for _, r := range slices.Concat(l.recipients, l.earlier) {
		if len(first) < n && !slices.Contains(first, r) {
			first = append(first, r)
		}
	}
	if home == nil || slices.Contains(first, home) {
		return first
	}
	others := first
	if len(first) == n && (n < api.Offered || n == seal.MaxRecipients) {
		others = slices.Delete(slices.Clone(first), max(n-2, 0), max(n-1, 1))
	}
	return append([]*recipient{home}, others...)
}

// outlasts says whether claims are valid from now until a request made now
// expires.
func (rc *recipientCache) outlasts(claims seal.Claims, now time.Time) bool {
	return claims.ValidAt(now) && claims.ValidAt(now.Add(rc.client.config.RequestLifetime))
}

func (rc *recipientCache) list(r *region, model string) recipientList {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	return rc.lists[listOf{r, model}]
}

// store makes what was verified the present list. Places of verified that are nil were
// refused, and are missing in sets.
func (rc *recipientCache) store(from *region, model string, verified []*recipient, sets [][]int) {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	of := listOf{from, model}
	before := rc.lists[of]
	list := recipientList{version: before.version + 1, fetched: rc.client.config.Now()}
	for _, r := range verified {
		switch {
		case r == nil:
		case r.Type() == seal.TypeFleet:
			list.fleet = append(list.fleet, r)
		default:
			list.recipients = append(list.recipients, r)
		}
	}
	for _, places := range sets {
		var set []*recipient
		for _, place := range places {
			if r := verified[place]; slices.Contains(list.recipients, r) && !slices.Contains(set, r) {
				set = append(set, r)
			}
		}
		if len(set) > 0 {
			list.sets = append(list.sets, set)
		}
	}
	kept := func(r *recipient) bool {
		listed := func(v *recipient) bool { return v != nil && v.KeyID() == r.KeyID() }
		return !slices.ContainsFunc(verified, listed) && rc.outlasts(r.Claims(), list.fetched)
	}
	for _, r := range slices.Concat(before.recipients, before.earlier) {
		if len(list.earlier) < maxEarlier && kept(r) {
			list.earlier = append(list.earlier, r)
		}
	}
	for _, r := range before.fleet {
		if kept(r) {
			list.fleet = append(list.fleet, r)
		}
	}
	rc.lists[of] = list
}

// forget drops recipients from the earlier ones and the fleet's of a list: nobody
// held their keys when a request came for them.
func (rc *recipientCache) forget(from *region, model string, gone []*recipient) {
	rc.mu.Lock()
	defer rc.mu.Unlock()
	of := listOf{from, model}
	list := rc.lists[of]
	isGone := func(r *recipient) bool { return slices.Contains(gone, r) }
	list.earlier = slices.DeleteFunc(slices.Clone(list.earlier), isGone)
	list.fleet = slices.DeleteFunc(slices.Clone(list.fleet), isGone)
	rc.lists[of] = list
}

// verify gives the recipients in their places, and nil in those of every one that the
// policy refuses. One that has been verified before, for whatever region, stays so
// until its claims expire or other releases are trusted: its key cannot have changed.
func (rc *recipientCache) verify(offered []api.Recipient, model string) ([]*recipient, error) {
	known := map[seal.KeyID]*recipient{}
	for _, from := range rc.client.regions {
		list := rc.list(from, model)
		for _, r := range list.all() {
			known[r.KeyID()] = r
		}
	}
	now := rc.client.config.Now()
	verified := make([]*recipient, len(offered))
	var refused []error
	seen := map[seal.KeyID]bool{}
	for i, o := range offered {
		recipient, err := rc.verifyOne(o, model, known, now)
		if errors.Is(err, errRefusedType) {
			continue // as every cluster with a fleet's key offers it to every client
		}
		if err != nil {
			refused = append(refused, fmt.Errorf("recipient %d: %w", i+1, err))
			continue
		}
		if seen[recipient.KeyID()] {
			return nil, api.Errorf(http.StatusBadGateway, "invalid_recipients", "the cluster lists a recipient twice")
		}
		seen[recipient.KeyID()] = true
		verified[i] = recipient
	}
	if len(refused) > 0 {
		rc.client.config.Logger.Warn("recipients refused", "model", model, "error", errors.Join(refused...))
	}
	if len(seen) == 0 {
		if len(refused) == 0 && len(offered) > 0 {
			refused = append(refused, errRefusedType)
		}
		return nil, api.Errorf(http.StatusBadGateway, "no_trusted_recipient",
			"none of the cluster's %d enclaves passed verification, so nothing was sent: %v", len(offered), errors.Join(refused...))
	}
	return verified, nil
}

// errRefusedType is a recipient of a type that the policy does without.
var errRefusedType = errors.New("recipient of a type that is not accepted")

func (rc *recipientCache) verifyOne(offered api.Recipient, model string, known map[seal.KeyID]*recipient, now time.Time) (*recipient, error) {
	parsed, err := rc.parse(offered, known)
	if err != nil {
		return nil, err
	}
	if !rc.client.config.Policy.acceptsType(parsed.Type()) {
		return nil, errRefusedType
	}
	if !rc.outlasts(parsed.Claims(), now) {
		return nil, errors.New("claims are not valid for as long as a request made now")
	}
	if r, ok := known[parsed.KeyID()]; ok && parsed.ClaimsDigest() == r.ClaimsDigest() && rc.trusted(r) {
		return r, nil
	}
	by := rc.client.trust.Load()
	policy := rc.client.policy(by)
	verified, err := policy.verify(offered, model, now)
	if err != nil {
		return nil, err
	}
	r := &recipient{Recipient: verified, attestation: offered.Attestation, verifiedAt: now}
	r.judged.Store(&judgement{by: by, ok: true})
	return r, nil
}

// parse reads a recipient's claims, or finds the one of which only the key id was listed.
func (rc *recipientCache) parse(offered api.Recipient, known map[seal.KeyID]*recipient) (*seal.Recipient, error) {
	if offered.KeyID == "" {
		return seal.ParseRecipient(offered.Claims)
	}
	kids, err := seal.ParseKeyIDs(offered.KeyID)
	if err != nil {
		return nil, err
	}
	if r := known[kids[0]]; r != nil {
		return r.Recipient, nil
	}
	return nil, errors.New("named by its key id, and not known")
}

// fetch asks for recipients, and says which ones it need not be told of again.
func (rc *recipientCache) fetch(ctx context.Context, r *region, key *credential.Key, model string) (answer api.Recipients, err error) {
	query := url.Values{"model": {model}, "sets": {strconv.Itoa(setsWanted)}}
	var known []seal.KeyID
	list := rc.usable(r, model)
	for _, r := range list.all() {
		known = append(known, r.KeyID())
	}
	if known = known[:min(len(known), api.MaxKnown)]; len(known) > 0 {
		query.Set("known", seal.FormatKeyIDs(known))
	}
	if n := rc.client.config.Recipients; n > api.Offered {
		query.Set("n", strconv.Itoa(n))
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url.JoinPath(api.PathKeys).String()+"?"+query.Encode(), nil)
	if err != nil {
		return answer, err
	}
	resp, err := rc.client.request(req, key)
	if err != nil {
		return answer, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return answer, readError(resp)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxRecipientsBytes)).Decode(&answer); err != nil || !setsWithin(answer) {
		return answer, api.Errorf(http.StatusBadGateway, "unexpected_response", "the list of recipients cannot be read")
	}
	return answer, nil
}

// setsWithin says whether sets name recipients that are there, no more than were asked for.
func setsWithin(answer api.Recipients) bool {
	outside := func(place int) bool { return place < 0 || place >= len(answer.Recipients) }
	return len(answer.Sets) <= setsWanted && !slices.ContainsFunc(answer.Sets, func(set []int) bool {
		return len(set) > seal.MaxRecipients || slices.ContainsFunc(set, outside)
	})
}
