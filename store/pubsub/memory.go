package pubsub

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Memory is a message queue in the memory of the process, for experiments and
// tests: what it holds is gone when the process ends, and of each topic it holds
// the last messages only. A second message with the same ID is not added.
type Memory struct {
	limit int

	mu     sync.Mutex
	topics map[string][]Message // guarded by mu
}

// NewMemory returns a queue that holds the last limit messages of each topic;
// limits below one mean one.
func NewMemory(limit int) *Memory {
	return &Memory{limit: max(limit, 1), topics: map[string][]Message{}}
}

// Messages are those that the topic holds, oldest first.
func (m *Memory) Messages(topic string) []Message {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.topics[topic])
}

func (m *Memory) add(topic string, msg Message) (existing bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	held := m.topics[topic]
	if slices.ContainsFunc(held, func(h Message) bool { return h.ID == msg.ID }) {
		return true
	}
	if len(held) == m.limit {
		held = slices.Delete(held, 0, 1)
	}
	m.topics[topic] = append(held, msg)
	return false
}

type memorySender struct {
	to    *Memory
	topic string
}

func (s *memorySender) send(_ context.Context, messages []Message) []result {
	results := make([]result, len(messages))
	for i, m := range messages {
		results[i] = result{
			where:    fmt.Sprintf("mem:///%s (in memory: gone when this process ends)", s.topic),
			existing: s.to.add(s.topic, m),
		}
	}
	return results
}

func (s *memorySender) close() error { return nil }
