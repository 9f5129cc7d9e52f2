"""A script as Hugging Face's documentation has it: a small GPT from random weights learns Python's help topics."""

from pydoc_data.topics import topics

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed


def main():
    set_seed(0)
    text = "".join(topics[name] for name in sorted(topics))[:80_000]
    alphabet = sorted(set(text))
    blocks = torch.tensor([alphabet.index(character) for character in text]).view(-1, 50)
    samples = [{"input_ids": block, "labels": block} for block in blocks]
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(alphabet), n_positions=50, n_embd=32, n_layer=2, n_head=2))
    arguments = TrainingArguments(
        output_dir="gpt",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
        learning_rate=3e-3,
        logging_steps=10,
        eval_strategy="epoch",
        report_to="tensorboard",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=samples[:1500], eval_dataset=samples[1500:])
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
