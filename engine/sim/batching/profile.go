package batching

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// BlockTokens is how many tokens a block of KV cache holds: vLLM's default
// block size.
const BlockTokens = 16

// Profile is an engine with a model on a piece of hardware. A step takes
//
//	Step + PrefillToken × prompt tokens computed in it
//	     + DecodeSequence × sequences that get a token in it by decoding
//	     + ContextToken × tokens of context that those sequences read
//
// which is the form that vLLM's step times were fitted to where the figures of
// [Profiles] come from.
type Profile struct {
	// Name is how people choose the profile.
	Name string
	// Arrival is what a request spends in the API server before the scheduler
	// sees it.
	Arrival time.Duration
	// Step is what every step takes, mostly to read the weights.
	Step time.Duration
	// PrefillToken is for each prompt token that is computed, not found in the
	// cache.
	PrefillToken time.Duration
	// DecodeSequence is for each sequence that decodes a token.
	DecodeSequence time.Duration
	// ContextToken is for each token of KV cache that a decoding sequence reads.
	ContextToken time.Duration
	// MaxSequences is how many sequences run at once (vLLM's max_num_seqs).
	MaxSequences int
	// MaxBatchedTokens is how many tokens a step computes at most, prompt tokens
	// and decoded ones together (vLLM's max_num_batched_tokens): a longer prompt
	// is prefilled in several steps, beside the others' decoding.
	MaxBatchedTokens int
	// KVBlocks is the size of the KV cache in blocks of BlockTokens.
	KVBlocks int
}

// Check says whether a machine can have the profile.
func (p Profile) Check() error {
	switch {
	case p.Step <= 0:
		return errors.New("profile: a step takes more than no time")
	case p.Arrival < 0 || p.PrefillToken < 0 || p.DecodeSequence < 0 || p.ContextToken < 0:
		return errors.New("profile: a time is negative")
	case p.MaxSequences < 1 || p.MaxBatchedTokens < 1 || p.KVBlocks < 1:
		return errors.New("profile: it needs at least one sequence, one token a step and one block of KV cache")
	}
	return nil
}

// CapacityTokens is how many tokens the KV cache holds: the most that a
// request's prompt and answer may have together.
func (p Profile) CapacityTokens() int { return p.KVBlocks * BlockTokens }

// H100 is Llama 3.1 8B in bf16 on one H100 SXM 80 GB.
//
// Arrival, Step, PrefillToken and KVBlocks are what the BLIS simulator's
// authors fitted to GuideLLM sweeps of vLLM 0.11.0 (github.com/inference-sim/
// inference-sim, defaults.yaml at commit 517fe652, model
// llama-3.1-8b-instruct, H100, tensor_parallelism 1: alpha 10,326 µs, beta
// 6,472 µs + 19.80 µs per prompt token missing from the cache, 29,205 blocks).
// That fit's third term, 304 µs a decoded token, is not used: with 64 sequences
// it would make a step nearly three times as long as the other sources do. DecodeSequence
// and ContextToken are from the same project's physical model (defaults.yaml at
// f90a1e3a, trained_physics_coefficients): 4.4 µs a request, and 1.947 times the
// time that reading a token's KV takes, 131,072 bytes (32 layers, 8 KV heads of
// 128, K and V in bf16) at 3.35 TB/s.
//
// Another project's figures agree: llm-d's workload variant autoscaler gives
// the same model on an H100 6.958 ms + 0.042 ms × batch for a decode step. Here
// it is 6.472 ms + 0.042 ms × batch where contexts have 500 tokens.
//
// MaxSequences and MaxBatchedTokens are vLLM's defaults for its API server on
// such a device (vllm/engine/arg_utils.py, get_batch_defaults).
func H100() Profile {
	return Profile{
		Name:             "h100-llama-8b",
		Arrival:          10326 * time.Microsecond,
		Step:             6472 * time.Microsecond,
		PrefillToken:     19797 * time.Nanosecond,
		DecodeSequence:   4417 * time.Nanosecond,
		ContextToken:     76 * time.Nanosecond,
		MaxSequences:     1024,
		MaxBatchedTokens: 8192,
		KVBlocks:         29205,
	}
}

// A100 is Llama 3.1 8B in bf16 on one A100 SXM 80 GB.
//
// The times and KVBlocks are BLIS' fit to vLLM 0.8.4 (the same file, A100-80,
// tensor_parallelism 1: alpha 7,740 µs, beta 16,442 µs + 47.84 µs a prompt token
// missing from the cache + 18.21 µs a decoded token, 29,205 blocks). The cost of
// context is inside of the last one, so ContextToken is 0: long contexts are
// too cheap here. The fit's other two alphas, 2.3 µs a prompt token before the
// scheduler and 6.3 ms after it, are not used.
//
// NVIDIA measured 48.3 ms to the first token of a prompt of 500 tokens, for a
// fine-tuned Llama 3.1 8B in bf16 on the same card (docs.nvidia.com/nim/
// llama-3-1-nemotron-safety-guard-8b/1.10.1/performance); this profile gives
// 48.1 ms. It is slow at decoding for today: vLLM 0.23 was measured with about
// 75 tokens/s, 13.3 ms a step, alone on the 40 GB card, whose memory is slower
// (johnmusgrave.com/p/vllm-throughput-latency-sweep-on); this gives 61 tokens/s.
//
// MaxSequences and MaxBatchedTokens are vLLM's defaults, as for [H100]; vLLM
// excepts the A100 from the larger ones.
func A100() Profile {
	return Profile{
		Name:             "a100-llama-8b",
		Arrival:          7740 * time.Microsecond,
		Step:             16442 * time.Microsecond,
		PrefillToken:     47837 * time.Nanosecond,
		DecodeSequence:   18206 * time.Nanosecond,
		MaxSequences:     256,
		MaxBatchedTokens: 2048,
		KVBlocks:         29205,
	}
}

// Profiles are the profiles that have names.
func Profiles() []Profile { return []Profile{H100(), A100()} }

// Named is the profile of that name, or of that hardware: "a100" is what
// "a100-llama-8b" is. The error lists the names there are.
func Named(name string) (Profile, error) {
	var names []string
	for _, p := range Profiles() {
		if hardware, _, _ := strings.Cut(p.Name, "-"); name == p.Name || name == hardware {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Profile{}, fmt.Errorf("profile %q: there are %s", name, strings.Join(names, " and "))
}
